# The operator's image. BuildKit is needed for the cache mounts.
#   docker build -t virt-steward .

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches are not part of the image, so the program is copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --package cli --bin virt-steward \
    && cp target/release/virt-steward /virt-steward

# The hook sidecar, static: docker build --target hook -t virt-steward-hook .
FROM build AS build-hook
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    target="$(uname -m)-unknown-linux-musl" \
    && rustup target add "$target" \
    && cargo build --locked --release --package hook --target "$target" \
    && cp "target/$target/release/virt-steward-hook" /virt-steward-hook \
    && strip /virt-steward-hook

FROM scratch AS hook
LABEL org.opencontainers.image.title="virt-steward-hook" \
      org.opencontainers.image.description="Gives passed-through devices of KubeVirt virtual machines their ROMs" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-hook /virt-steward-hook /virt-steward-hook
# KubeVirt runs hook sidecars and QEMU as this user.
USER 107:107
ENTRYPOINT ["/virt-steward-hook"]

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="virt-steward" \
      org.opencontainers.image.description="Features for KubeVirt virtual machines, asked for by annotation" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /virt-steward /usr/local/bin/virt-steward
# Whom to trust outside the cluster: object stores, trace collectors.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE /usr/share/doc/virt-steward/LICENSE
# No shell, no package and no file is needed at run time: root stays read-only, nothing is written.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/usr/local/bin/virt-steward"]
CMD ["operator"]

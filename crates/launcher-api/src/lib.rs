//! The messages of virt-launcher's command socket that the node agent sends. No IO; `cargo run -p xtask -- codegen`
//! makes what is below `generated/` from `proto/` ([ADR 6](../../../docs/adr/0006-generated-grpc.md)).
//!
//! Only the calls of an in-place resize are there. What is left out of the proto file cannot be
//! asked of a launcher by mistake. The sandbox's launchers answer more, from a proto file of their own; the question for
//! versions, which comes before any other, both take from here.

/// `kubevirt.cmd.info`: the versions that a launcher speaks.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/kubevirt.cmd.info.rs"]
pub mod info;

/// `kubevirt.cmd.v1`: the command socket itself.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/kubevirt.cmd.v1.rs"]
pub mod v1;

/// The version of the command socket that these messages are.
pub const CMD_VERSION: u32 = 1;

/// The largest message either side sends, bytes. A launcher refuses requests over 4 MiB
/// (grpc-go's default, seen as `RESOURCE_EXHAUSTED`).
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Bytes as the wire format has them: field 1 with length, then field 2.
    #[test]
    fn field_numbers_are_kubevirts() {
        let request = v1::VmiRequest { vmi: Some(v1::Vmi { vmi_json: b"{}".to_vec() }) };
        assert_eq!(request.encode_to_vec(), [0x0a, 4, 0x0a, 2, b'{', b'}']);
        let response = v1::Response { success: true, message: "no".into() };
        assert_eq!(response.encode_to_vec(), [0x08, 1, 0x12, 2, b'n', b'o']);
        let domain = v1::DomainResponse { response: None, domain: "d".into() };
        assert_eq!(domain.encode_to_vec(), [0x12, 1, b'd']);
        let info = info::CmdInfoResponse { supported_cmd_versions: vec![1] };
        assert_eq!(info.encode_to_vec(), [0x0a, 1, 1]);
    }

    #[test]
    fn unknown_fields_are_ignored() {
        // Field 2 of VMIRequest are the options, which are not ours.
        let bytes = [0x0a, 2, 0x0a, 0, 0x12, 2, 0x10, 5];
        let request = v1::VmiRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!(request.vmi, Some(v1::Vmi::default()));
    }
}

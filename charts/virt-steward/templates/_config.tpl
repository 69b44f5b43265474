{{/* Whether client certificates are looked at. */}}
{{- define "virt-steward.clientCa" -}}
{{- and .Values.rest.enabled (eq .Values.rest.auth "impersonate") (ne .Values.rest.clientCaConfigMap "") }}
{{- end }}

{{/* Seconds that API servers wait. */}}
{{- define "virt-steward.timeout" -}}
{{- ternary .Values.webhook.timeoutSeconds .Values.webhook.timeout (kindIs "invalid" .Values.webhook.timeout) }}
{{- end }}

{{/*
The namespace selector, as JSON: the user's, without the release's own namespace and the excluded
ones. Nothing that keeps this webhook alive may wait for it.
*/}}
{{- define "virt-steward.namespaceSelector" -}}
{{- $excluded := append .Values.webhook.excludedNamespaces .Release.Namespace | uniq }}
{{- $selector := deepCopy .Values.webhook.namespaceSelector }}
{{- $expressions := get $selector "matchExpressions" | default list }}
{{- $_ := set $selector "matchExpressions" (append $expressions (dict "key" "kubernetes.io/metadata.name" "operator" "NotIn" "values" $excluded)) }}
{{- $selector | toJson }}
{{- end }}

{{/*
The program's configuration file, as `virt-steward operator --config FILE --print-config` reads
and prints it. The values of a feature have the names of the file; what differs is set right here.
*/}}
{{- define "virt-steward.config" -}}
{{- $self := eq (include "virt-steward.certificateSource" .) "self" }}
{{- $features := deepCopy .Values.features }}
{{- range $feature := values $features }}
{{- if $feature.errorHandling }}
{{- $_ := set $feature "errorHandling" (include "virt-steward.errorMode" $feature.errorHandling) }}
{{- else }}
{{- $_ := unset $feature "errorHandling" }}
{{- end }}
{{- end }}
{{- $vbios := omit $features.vbiosInjection "defaultSidecarImage" "autoDetectVersion" "defaultConfigMap" }}
{{- $_ := set $vbios "hookImage" (include "virt-steward.hookImage" .) }}
{{- $_ := set $features "vbiosInjection" $vbios }}
{{- $_ := set $features "source" .Values.configSource }}
{{- $_ := set $features "errorHandling" (include "virt-steward.errorMode" .Values.errorHandling.mode) }}
{{- $_ := set $features "addTrackingAnnotations" .Values.addTrackingAnnotations }}
{{- $_ := set $features "availability" .Values.availability }}
{{- $_ := set $features "userDataSecrets" .Values.rbac.secrets.enabled }}
{{- $timeout := include "virt-steward.timeout" . | int }}
server:
  port: {{ .Values.webhook.port }}
  # Below the API server's patience, so that its answer says what was slow.
  requestTimeoutSeconds: {{ max 1 (min 8 (sub $timeout 2)) }}
tls:
  source: {{ ternary "self-signed" "files" $self }}
  certDir: {{ .Values.webhook.certDir }}
  {{- if eq (include "virt-steward.certificateSource" .) "files" }}
  certFile: {{ .Values.tls.certFile | required "tls.certFile is needed beside keyFile" }}
  keyFile: {{ .Values.tls.keyFile | required "tls.keyFile is needed beside certFile" }}
  {{- end }}
  secretName: {{ include "virt-steward.certificateSecretName" . }}
register:
  # With a certificate of its own the program fills in its webhook configuration, CA included.
  mode: {{ ternary "service" "none" $self }}
  name: {{ .Values.webhook.configurationName }}
  serviceName: {{ include "virt-steward.fullname" . }}
  servicePort: {{ .Values.service.port }}
  failurePolicy: {{ .Values.webhook.failurePolicy }}
  timeoutSeconds: {{ $timeout }}
  namespaceSelector: {{ include "virt-steward.namespaceSelector" . }}
  {{- with .Values.webhook.objectSelector }}
  objectSelector: {{ toJson . }}
  {{- end }}
resize:
  {{- omit .Values.resize "agent" | toYaml | nindent 2 }}
hotplug:
  guard: {{ .Values.hotplug.guard.enabled }}
  gate: {{ .Values.hotplug.gate.enabled }}
  heal: {{ .Values.hotplug.heal.enabled }}
exports:
  enabled: {{ .Values.exports.enabled }}
  image: {{ include "virt-steward.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if .Values.rest.enabled }}
rest:
  enabled: true
  port: {{ .Values.rest.port }}
  auth: {{ .Values.rest.auth }}
  {{- if eq .Values.rest.auth "impersonate" }}
  {{- with .Values.rest.audiences }}
  audiences: {{ toJson . }}
  {{- end }}
  {{- if .Values.rest.clientCaConfigMap }}
  clientCaFile: /etc/virt-steward-clients/ca.crt
  {{- end }}
  {{- end }}
  {{- with .Values.rest.prometheus }}
  prometheus: {{ . | quote }}
  {{- end }}
{{- end }}
kubernetes:
  leaderElect: {{ include "virt-steward.elects" . }}
  readSecrets: {{ .Values.rbac.secrets.enabled }}
telemetry:
  logLevel: {{ .Values.logLevel }}
  {{- with .Values.traces.otlpEndpoint }}
  otlpEndpoint: {{ . }}
  {{- end }}
  metricsBindAddress: {{ ternary (printf ":%v" .Values.metrics.port) "0" .Values.metrics.enabled | quote }}
features:
  {{- toYaml $features | nindent 2 }}
{{- end }}

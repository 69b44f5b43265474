{{/* The chart's name, cut to a DNS label. */}}
{{- define "virt-steward.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The release's full name: the prefix of every object here. */}}
{{- define "virt-steward.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "virt-steward.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "virt-steward.selectorLabels" -}}
app.kubernetes.io/name: {{ include "virt-steward.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "virt-steward.labels" -}}
{{ include "virt-steward.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "virt-steward.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "virt-steward.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "virt-steward.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* `tls` with what the older `certificates` sets laid over it, as JSON. */}}
{{- define "virt-steward.tls" -}}
{{- $old := .Values.certificates | default dict }}
{{- $cm := mergeOverwrite (deepCopy .Values.tls.certManager) (deepCopy (get $old "certManager" | default dict)) }}
{{- if hasKey $cm "issuerName" }}
{{- $cm = mergeOverwrite $cm (dict "issuer" $cm.issuerName) }}
{{- end }}
{{- $manual := mergeOverwrite (deepCopy .Values.tls.manual) (deepCopy (get $old "manual" | default dict)) }}
{{- dict "certManager" $cm "manual" $manual | toJson }}
{{- end }}

{{/* Where the certificate comes from: cert-manager, manual, existing, files or self. */}}
{{- define "virt-steward.certificateSource" -}}
{{- $tls := include "virt-steward.tls" . | fromJson }}
{{- if $tls.certManager.enabled -}}cert-manager
{{- else if $tls.manual.existingSecret -}}existing
{{- else if or $tls.manual.tlsCert $tls.manual.tlsKey -}}manual
{{- else if or .Values.tls.certFile .Values.tls.keyFile -}}files
{{- else -}}self
{{- end }}
{{- end }}

{{- define "virt-steward.certificateSecretName" -}}
{{- $tls := include "virt-steward.tls" . | fromJson }}
{{- if eq (include "virt-steward.certificateSource" .) "existing" -}}
{{ $tls.manual.existingSecret }}
{{- else -}}
{{ include "virt-steward.fullname" . }}-tls
{{- end }}
{{- end }}

{{- define "virt-steward.caBundle" -}}
{{- $tls := include "virt-steward.tls" . | fromJson }}
{{- if has (include "virt-steward.certificateSource" .) (list "existing" "manual" "files") -}}
{{- $tls.manual.caCert | required "tls.manual.caCert is needed with a certificate of your own: the API server checks the webhook against it" }}
{{- end }}
{{- end }}

{{/* An error mode in the spelling that the program documents. */}}
{{- define "virt-steward.errorMode" -}}
{{- $older := dict "Reject" "reject" "allow" "allow-and-log" "KeepLabel" "allow-and-log" "AllowAndLog" "allow-and-log" "StripLabel" "strip-label" }}
{{- get $older . | default . }}
{{- end }}

{{/* The hook image; KubeVirt's sidecar-shim knows nothing of our arguments and is passed over. */}}
{{- define "virt-steward.hookImage" -}}
{{- $vbios := .Values.features.vbiosInjection }}
{{- if $vbios.hookImage -}}
{{ $vbios.hookImage }}
{{- else if not (contains "sidecar-shim" $vbios.defaultSidecarImage) -}}
{{ $vbios.defaultSidecarImage }}
{{- end }}
{{- end }}

{{/*
CEL: whether an object carries a word of ours in annotations or labels, or cloud-init that may carry
the map x_kubevirt_features: in plain text it is looked for, in base64 or a Secret it may be. The
same expression that the program registers.
*/}}
{{- define "virt-steward.mayAsk" -}}
{{- $object := . }}
{{- range list "annotations" "labels" -}}
(has({{ $object }}.metadata.{{ . }}) && {{ $object }}.metadata.{{ . }}.exists(k, k.startsWith('vm-feature-manager.io/'))) || {{ end -}}
(has({{ $object }}.spec) && has({{ $object }}.spec.template) && has({{ $object }}.spec.template.spec) && has({{ $object }}.spec.template.spec.volumes) && {{ $object }}.spec.template.spec.volumes.exists(v,
{{- range $i, $source := list "cloudInitNoCloud" "cloudInitConfigDrive" -}}
{{ if $i }} ||{{ end }} (has(v.{{ $source }}) && (!has(v.{{ $source }}.userData) || v.{{ $source }}.userData.contains('x_kubevirt_features')))
{{- end -}}
))
{{- end }}

{{/*
Whether a VM has what policies, or the question whether any node can take it, are about (CEL). The same as
`has_devices` of crates/operator/src/register/objects.rs.
*/}}
{{- define "virt-steward.hasDevices" -}}
(has(object.spec) && (has(object.spec.instancetype) || (has(object.spec.template) && has(object.spec.template.spec) && (has(object.spec.template.spec.nodeSelector) || has(object.spec.template.spec.affinity) || (has(object.spec.template.spec.domain) && ((has(object.spec.template.spec.domain.devices) && (has(object.spec.template.spec.domain.devices.hostDevices) || has(object.spec.template.spec.domain.devices.gpus))) || has(object.spec.template.spec.domain.cpu) || has(object.spec.template.spec.domain.memory) && has(object.spec.template.spec.domain.memory.hugepages))) || (has(object.spec.template.metadata) && has(object.spec.template.metadata.annotations))))))
{{- end }}

{{/* Whether replicas choose one among them that reconciles. */}}
{{- define "virt-steward.elects" -}}
{{- $reconciles := or .Values.resize.enabled .Values.hotplug.guard.enabled .Values.hotplug.gate.enabled .Values.hotplug.heal.enabled .Values.exports.enabled }}
{{- ternary "true" "false" (and $reconciles (gt (int (default .Values.replicaCount .Values.replicas)) 1)) }}
{{- end }}

{{/* The port of a URL that is given as the context. */}}
{{- define "virt-steward.portOf" -}}
{{ regexFind "^[0-9]+" (regexReplaceAll "^https?://[^/]*?(:([0-9]+))?(/.*)?$" . "${2}") | default (ternary "443" "80" (hasPrefix "https" .)) }}
{{- end }}

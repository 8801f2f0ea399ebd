{{/* The release's name, and what is made from it. KubeRay appends to it, so it must stay short. */}}
{{- define "streamchat.name" -}}
{{- if gt (len .Release.Name) 40 }}{{ fail (printf "release name: got %d characters, wanted 40 at most" (len .Release.Name)) }}{{ end -}}
{{ .Release.Name }}
{{- end }}

{{/* What a policy, a monitor or a budget selects a pod by. Call with (list $ "component"). */}}
{{- define "streamchat.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: streamchat
app.kubernetes.io/instance: {{ include "streamchat.name" $ }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "streamchat.labels" -}}
{{- $ := index . 0 -}}
{{ include "streamchat.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ $.Chart.Name }}-{{ $.Chart.Version }}
{{- end }}

{{/* Metadata of an object: (list $ "name" "component"); an empty name is the release's own. */}}
{{- define "streamchat.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "streamchat.name" $ }}{{ with index . 1 }}-{{ . }}{{ end }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "streamchat.labels" (list $ (index . 2)) | nindent 2 }}
{{- end }}

{{- define "streamchat.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "streamchat.gpuImage" -}}
{{ .Values.image.repository }}:{{ .Values.image.gpuTag | default (printf "%s-gpu" .Chart.AppVersion) }}
{{- end }}

{{- define "streamchat.serviceAccount" -}}
{{ .Values.serviceAccount.existing | default (include "streamchat.name" .) }}
{{- end }}

{{/* A password that survives upgrades: (list $ "secret" "key"). */}}
{{- define "streamchat.kept" -}}
{{- $there := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) -}}
{{- if $there }}{{ index $there.data (index . 2) | b64dec }}{{ else }}{{ randAlphaNum 32 }}{{ end -}}
{{- end }}

{{/* What every pod of ours has: no rights, and no Service of this namespace among its variables: with a release
     called streamchat they would be STREAMCHAT_KAFKA_PORT and the like, which the services refuse. */}}
{{- define "streamchat.podSecurity" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "streamchat.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "streamchat.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Folders of Secrets below /etc/streamchat, as YAML: name -> Secret. The services alone get the keys' hashes. */}}
{{- define "streamchat.folders" -}}
{{- $ := .root -}}
{{- if and .services (eq $.Values.settings.access "keys") }}
keys: {{ $.Values.apiKeys.existingSecret | default (printf "%s-keys" (include "streamchat.name" $)) }}
{{- end }}
{{- if eq $.Values.kafka.mode "strimzi" }}
strimzi: {{ include "streamchat.name" $ }}-cluster-ca-cert
{{- end }}
{{- range $.Values.secretFiles }}
{{ .name }}: {{ .secret }}
{{- end }}
{{- end }}

{{/* A container of our image: (dict "root" $ "gpu" false "services" whether it runs them "secrets"
     what it may know "variables" more variables). */}}
{{- define "streamchat.ourContainer" -}}
{{- $ := .root -}}
image: {{ $.Values.image.repository }}:{{ ternary ($.Values.image.gpuTag | default (printf "%s-gpu" $.Chart.AppVersion)) ($.Values.image.tag | default $.Chart.AppVersion) .gpu }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
{{ include "streamchat.containerSecurity" $ }}
envFrom:
  - configMapRef: {name: {{ include "streamchat.name" $ }}-settings}
env:
  - {name: HOME, value: /tmp}
  {{- range $name, $from := .secrets }}
  - name: STREAMCHAT_{{ upper $name }}
    valueFrom: {secretKeyRef: {name: {{ $from.name }}, key: {{ $from.key }}}}
  {{- end }}
  {{- with .variables }}{{ . | nindent 2 }}{{ end }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if $.Values.model.claim }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
  {{- range $name, $_ := include "streamchat.folders" . | fromYaml }}
  - {name: {{ $name }}, mountPath: /etc/streamchat/{{ $name }}, readOnly: true}
  {{- end }}
{{- end }}

{{- define "streamchat.ourVolumes" -}}
volumes:
  - {name: tmp, emptyDir: {}}
  {{- with .root.Values.model.claim }}
  - name: models
    persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
  {{- end }}
  {{- range $name, $secret := include "streamchat.folders" . | fromYaml }}
  - name: {{ $name }}
    secret: {secretName: {{ $secret }}, defaultMode: 0440}
  {{- end }}
{{- end }}

{{/* What a publisher may know: Kafka's secrets, or those that are given for publishers alone. */}}
{{- define "streamchat.publisherSecrets" -}}
{{- $kafka := dict }}
{{- range $name, $from := include "streamchat.secrets" . | fromYaml }}
{{- if hasPrefix "kafka_" $name }}{{ $_ := set $kafka $name $from }}{{ end }}
{{- end }}
{{- if eq .Values.kafka.mode "strimzi" }}
{{- $_ := set $kafka "kafka_password" (dict "name" (printf "%s-cameras" (include "streamchat.name" .)) "key" "password") }}
{{- end }}
{{- mergeOverwrite $kafka .Values.publisher.secretSettings | toYaml }}
{{- end }}

{{/* Who a publisher is to the chart's Strimzi. */}}
{{- define "streamchat.publisherVariables" -}}
{{- if eq .Values.kafka.mode "strimzi" }}
- {name: STREAMCHAT_KAFKA_USERNAME, value: {{ include "streamchat.name" . }}-cameras}
{{- end }}
{{- end }}

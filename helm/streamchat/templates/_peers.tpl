{{/* Pods of this release as a list of peers: (list $ "component" "component" ...). */}}
{{- define "streamchat.peers" -}}
{{- $ := first . -}}
{{- range rest . }}
- podSelector:
    matchLabels:
      {{- include "streamchat.selector" (list $ .) | nindent 6 }}
{{- end }}
{{- end }}

{{/* All of Ray's pods. */}}
{{- define "streamchat.rayPods" -}}
matchLabels:
  app.kubernetes.io/instance: {{ include "streamchat.name" . }}
  ray.io/is-ray-node: "yes"
{{- end }}

{{/* Who may talk to Kafka: FrameFifo, the publishers, the camera of the test, and who else sends. */}}
{{- define "streamchat.kafkaClients" -}}
{{- include "streamchat.peers" (list . "cpu" "camera" "test") }}
{{- with .Values.networkPolicy.senders }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A rule: (list "to" peers-as-YAML ports); without peers it is anywhere. */}}
{{- define "streamchat.rule" -}}
- ports: [{{ range $i, $port := index . 2 }}{{ if $i }}, {{ end }}{port: {{ $port }}, protocol: TCP}{{ end }}]
  {{- with index . 1 | trim }}
  {{ index $ 0 }}:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "streamchat.toKafka" -}}
{{- if eq .Values.kafka.mode "external" }}
{{- include "streamchat.rule" (list "to" (include "streamchat.given" .Values.networkPolicy.kafka) .Values.networkPolicy.kafkaPorts) }}
{{- else if eq .Values.kafka.mode "strimzi" }}
{{- $brokers := printf "- podSelector:\n    matchLabels: {strimzi.io/cluster: %s, strimzi.io/kind: Kafka}" (include "streamchat.name" .) }}
{{- include "streamchat.rule" (list "to" $brokers (list 9093)) }}
{{- else }}
{{- include "streamchat.rule" (list "to" (include "streamchat.peers" (list . "kafka")) (list 9092)) }}
{{- end }}
{{- end }}

{{- define "streamchat.toRedis" -}}
{{- if eq .Values.redis.mode "external" }}
{{- $ports := .Values.networkPolicy.redisPorts }}
{{- if contains "+sentinel://" (.Values.settings.redis_url | default "") }}
{{- $ports = append $ports 26379 }}
{{- end }}
{{- include "streamchat.rule" (list "to" (include "streamchat.given" .Values.networkPolicy.redis) $ports) }}
{{- else }}
{{- include "streamchat.rule" (list "to" (include "streamchat.peers" (list . "redis")) (list 6379)) }}
{{- end }}
{{- end }}

{{- define "streamchat.toGcs" -}}
{{- with .Values.gcs.address }}
{{- include "streamchat.rule" (list "to" (include "streamchat.given" $.Values.networkPolicy.gcs) (list (splitList ":" . | last | int))) }}
{{- else }}
{{- include "streamchat.rule" (list "to" (include "streamchat.peers" (list . "gcs")) (list 6379)) }}
{{- end }}
{{- end }}

{{/* Names are looked up in the cluster's DNS. */}}
{{- define "streamchat.toDns" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
{{- end }}

{{/* Peers from the values, as YAML; nothing when there are none. */}}
{{- define "streamchat.given" -}}
{{- with . }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* A policy: (dict "root" $ "name" "redis" "ingress" rules-as-YAML "egress" rules-as-YAML "pods" a selector or nothing
     for the component of that name). What it does not allow is forbidden. */}}
{{- define "streamchat.policy" -}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "streamchat.metadata" (list .root .name .name) | nindent 2 }}
spec:
  podSelector:
    {{- if .pods }}
    {{- .pods | nindent 4 }}
    {{- else }}
    matchLabels:
      {{- include "streamchat.selector" (list .root .name) | nindent 6 }}
    {{- end }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress }}
  ingress:
    {{- . | trim | nindent 4 }}
  {{- end }}
  {{- with .egress }}
  egress:
    {{- . | trim | nindent 4 }}
  {{- end }}
{{ end }}

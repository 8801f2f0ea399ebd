{{/* Settings that the chart itself knows, as YAML: where its own Kafka and Redis are, and the keys. */}}
{{- define "streamchat.known" -}}
{{- $name := include "streamchat.name" . }}
{{- if eq .Values.kafka.mode "development" }}
kafka_bootstrap_servers: {{ $name }}-kafka:9092
{{- else if eq .Values.kafka.mode "strimzi" }}
kafka_bootstrap_servers: {{ $name }}-kafka-bootstrap:9093
kafka_security_protocol: SASL_SSL
kafka_username: {{ $name }}-services
kafka_ca_file: /etc/streamchat/strimzi/ca.crt
{{- end }}
{{- if eq .Values.redis.mode "development" }}
redis_url: redis://{{ $name }}-redis:6379/0
{{- end }}
{{- if eq .Values.settings.access "keys" }}
keys_file: /etc/streamchat/keys/keys.json
{{- end }}
{{- end }}

{{/* Settings that come from Secrets, as YAML: setting -> name and key. */}}
{{- define "streamchat.secrets" -}}
{{- $name := include "streamchat.name" . }}
{{- $made := dict }}
{{- if eq .Values.kafka.mode "strimzi" }}
{{- $_ := set $made "kafka_password" (dict "name" (printf "%s-services" $name) "key" "password") }}
{{- end }}
{{- if eq .Values.redis.mode "development" }}
{{- $_ := set $made "redis_password" (dict "name" (printf "%s-redis" $name) "key" "password") }}
{{- end }}
{{- merge $made .Values.secretSettings | toYaml }}
{{- end }}

{{/* All settings that are no secrets, as the ConfigMap's data. A whole number never becomes 4.194304e+06. */}}
{{- define "streamchat.settingsData" -}}
{{- $secrets := include "streamchat.secrets" . | fromYaml }}
{{- $known := include "streamchat.known" . | fromYaml }}
{{- range $name, $given := .Values.settings }}
{{- $value := get $known $name | default $given }}
{{- if not (hasKey $secrets $name) }}
STREAMCHAT_{{ upper $name }}: {{ include "streamchat.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* A value as a program reads it. */}}
{{- define "streamchat.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}

{{/* Stops an install that could not work. */}}
{{- define "streamchat.check" -}}
{{- $settings := .Values.settings }}
{{- $secrets := include "streamchat.secrets" . | fromYaml }}
{{- range $name, $value := include "streamchat.known" . | fromYaml }}
{{- $given := get $settings $name }}
{{- if and $given (ne $given $value) (not (and (eq $name "kafka_security_protocol") (eq $given "PLAINTEXT"))) }}
{{- fail (printf "settings.%s: got %q, wanted nothing: the chart sets it to %q" $name $given $value) }}
{{- end }}
{{- end }}
{{- range $name, $_ := $secrets }}
{{- if get $settings $name }}{{ fail (printf "settings.%s: got %q, wanted nothing: it comes from a Secret" $name (get $settings $name)) }}{{ end }}
{{- end }}
{{- if and (eq .Values.kafka.mode "external") (not $settings.kafka_bootstrap_servers) (not (hasKey $secrets "kafka_bootstrap_servers")) }}
{{- fail "kafka.mode is external: wanted settings.kafka_bootstrap_servers, which says where it is" }}
{{- end }}
{{- if and (eq .Values.redis.mode "external") (not $settings.redis_url) (not (hasKey $secrets "redis_url")) }}
{{- fail "redis.mode is external: wanted settings.redis_url, which says where it is" }}
{{- end }}
{{- if and (eq .Values.kafka.mode "strimzi") (not .Values.kafka.strimzi.assumeApi) (not (.Capabilities.APIVersions.Has "kafka.strimzi.io/v1")) }}
{{- fail "kafka.mode is strimzi: the cluster does not know kafka.strimzi.io/v1; install Strimzi 1.0 or newer, or set kafka.strimzi.assumeApi" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: got none, wanted at least one Gateway" }}
{{- end }}
{{- range $name, $group := .Values.workers }}
{{- if gt (int $group.min) (int $group.max) }}{{ fail (printf "workers.%s.min: got %v, wanted max (%v) at most" $name $group.min $group.max) }}{{ end }}
{{- end }}
{{- end }}

{{/* Flags of Ray, the same on head and workers; services/local/local_ray.py has them for one machine. */}}
{{- define "streamchat.rayVariables" -}}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
# Between deployments: a batch of pictures, or a clip that came with a question.
- {name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, value: "33554432"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- end }}

{{/* A pod of Ray: (dict "root" $ "component" "cpu" "gpu" false "group" its values). */}}
{{- define "streamchat.rayPod" -}}
{{- $ := .root -}}
{{- $component := .component -}}
{{- $head := eq $component "head" -}}
metadata:
  labels:
    {{- include "streamchat.labels" (list $ $component) | nindent 4 }}
  annotations:
    # Settings that change make a new cluster, to which the traffic moves when it is ready.
    streamchat/settings: {{ include "streamchat.settingsData" $ | sha256sum }}
spec:
  {{- include "streamchat.podSecurity" 1000 | nindent 2 }}
  {{- include "streamchat.pullSecrets" $ | nindent 2 }}
  serviceAccountName: {{ include "streamchat.serviceAccount" $ }}
  automountServiceAccountToken: {{ $head }}
  {{- with .group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "streamchat.selector" (list $ $component) | nindent 10 }}
    {{- end }}
  # Longer than an answer may take to end.
  terminationGracePeriodSeconds: 120
  containers:
    - name: {{ ternary "ray-head" "ray-worker" $head }}
      {{- include "streamchat.ourContainer" (dict "root" $ "gpu" .gpu "services" true "secrets" (include "streamchat.secrets" $ | fromYaml) "variables" (include "streamchat.rayVariables" $)) | nindent 6 }}
      resources:
        {{- toYaml .group.resources | nindent 8 }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
      startupProbe:
        httpGet: {path: /api/healthz, port: 52365}
        periodSeconds: 5
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 24
      readinessProbe:
        # A worker takes questions when its proxy does; KubeRay itself asks the head's.
        httpGet: {{ ternary "{path: /api/healthz, port: 52365}" "{path: /-/healthz, port: serve}" $head }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ ternary 10 1 $head }}
  {{- include "streamchat.ourVolumes" (dict "root" $ "services" true) | nindent 2 }}
{{- end }}

{{/* A deployment of Serve: (dict "root" $ "name" "Gateway" "cpus" 1 "gpus" 0 "group" "cpu" "scale" its autoscaling or
     nothing, "least" settings.gateway_replicas). */}}
{{- define "streamchat.deployment" -}}
- name: {{ .name }}
  ray_actor_options:
    num_cpus: {{ .cpus }}
    num_gpus: {{ .gpus }}
    label_selector: {streamchat/group: {{ .group }}}
  {{- if and .root.Values.autoscaling.enabled .scale }}
  num_replicas: auto
  autoscaling_config:
    min_replicas: {{ .least }}
    max_replicas: {{ max .least .scale.maxReplicas }}
    target_ongoing_requests: {{ .scale.ongoingRequests }}
    {{- with .scale.frameAgeSeconds }}
    policy:
      policy_function: services.llm_decoder.replica_policy:ReplicaPolicy
      policy_kwargs: {frame_age_s: {{ . }}}
    {{- end }}
  {{- end }}
{{- end }}

{{/* The groups of workers that are there. */}}
{{- define "streamchat.groups" -}}
- {name: cpu, values: cpu}
{{- if gt (float64 .Values.settings.num_gpus_per_decoder) 0.0 }}
- {name: gpu-decoder, values: gpuDecoder}
{{- end }}
{{- if gt (float64 .Values.settings.num_gpus_per_encoder) 0.0 }}
- {name: gpu-encoder, values: gpuEncoder}
{{- end }}
{{- end }}

{{/* A Redis-protocol store behind a password: (dict "root" $ "name" "redis" "image" ... "resources" ... "options" list
     "storage" a size or nothing). */}}
{{- define "streamchat.store" -}}
{{- $ := .root -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "streamchat.metadata" (list $ .name .name) | nindent 2 }}
spec:
  selector:
    {{- include "streamchat.selector" (list $ .name) | nindent 4 }}
  ports:
    - {name: redis, port: 6379}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "streamchat.metadata" (list $ .name .name) | nindent 2 }}
spec:
  serviceName: {{ include "streamchat.name" $ }}-{{ .name }}
  replicas: 1
  selector:
    matchLabels:
      {{- include "streamchat.selector" (list $ .name) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "streamchat.labels" (list $ .name) | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      {{- include "streamchat.podSecurity" 999 | nindent 6 }}
      containers:
        - name: store
          image: {{ .image }}
          {{- include "streamchat.containerSecurity" $ | nindent 10 }}
          command: [valkey-server]
          args:
            {{- toYaml (concat (list "--requirepass" "$(PASSWORD)" "--dir" "/data" "--maxmemory-policy" "noeviction") .options) | nindent 12 }}
          env:
            - name: PASSWORD
              valueFrom: {secretKeyRef: {name: {{ .secret }}, key: password}}
          ports:
            - {name: redis, containerPort: 6379}
          startupProbe:
            tcpSocket: {port: redis}
            periodSeconds: 2
            failureThreshold: 60
          readinessProbe:
            tcpSocket: {port: redis}
          livenessProbe:
            tcpSocket: {port: redis}
            periodSeconds: 20
          resources:
            {{- toYaml .resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
  {{- if .storage }}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: {{ .storage }}}}
  {{- else }}
      volumes:
        - {name: data, emptyDir: {}}
  {{- end }}
{{- end }}

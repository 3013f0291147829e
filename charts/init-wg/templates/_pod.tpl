{{/*
What a pod needs for its tunnel. These templates are also for charts that have this one as a dependency. Their argument is
this chart's values:

  {{- $wg := index .Values "init-wg" }}
  metadata: {labels: {{- include "init-wg.labels" $wg | nindent 4 }}}
  spec:
    initContainers: {{- include "init-wg.initContainers" $wg | nindent 4 }}   # before all others
    volumes: {{- include "init-wg.volumes" $wg | nindent 4 }}

k8s/component is the source, and has the reasons; a test keeps this equal to it.
*/}}

{{- define "init-wg.labels" -}}
init-wg.io/inject: "true"
{{- end }}

{{- define "init-wg.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag }}{{ end }}
{{- end }}

{{- define "init-wg.port" -}}
{{ .env.HEALTH_PORT | default 9999 | int }}
{{- end }}

{{- define "init-wg.env" -}}
{{- if eq .implementation "userspace" }}
- name: WG_IMPLEMENTATION
  value: userspace
{{- end }}
{{- if contains "$(POD_NAME)" (.env.WG_CONFIG | default "") }}
{{- /* Kubernetes replaces $(POD_NAME) only in what comes after it. */}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "init-wg.resources" -}}
{{- $limit := ternary "256Mi" "128Mi" (eq .implementation "userspace") }}
{{- $default := dict "requests" (dict "cpu" "10m" "memory" "32Mi") "limits" (dict "memory" $limit) }}
{{- mergeOverwrite $default (deepCopy .resources) | toYaml }}
{{- end }}

{{- define "init-wg.common" -}}
image: {{ include "init-wg.image" . | quote }}
{{- with .image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- with include "init-wg.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
envFrom:
  - configMapRef:
      name: init-wg
      optional: true
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  runAsUser: 0
  runAsNonRoot: false
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  seccompProfile:
    type: RuntimeDefault
resources:
  {{- include "init-wg.resources" . | nindent 2 }}
volumeMounts:
  - name: init-wg-config
    mountPath: /etc/wireguard
    readOnly: true
  - name: init-wg-run
    mountPath: /run
{{- if eq .implementation "userspace" }}
  - name: init-wg-tun
    mountPath: /dev/net/tun
{{- end }}
{{- end }}

{{- define "init-wg.initContainers" -}}
{{- $port := include "init-wg.port" . -}}
- name: init-wg
  command: [init-wg, up]
  {{- include "init-wg.common" . | nindent 2 }}
- name: init-wg-watchdog
  command: [init-wg-watchdog]
  restartPolicy: Always
  ports:
    - name: init-wg-health
      containerPort: {{ $port }}
  startupProbe:
    httpGet:
      path: /readyz
      port: {{ $port }}
    periodSeconds: 1
    timeoutSeconds: 2
    failureThreshold: 300
  readinessProbe:
    httpGet:
      path: /readyz
      port: {{ $port }}
    periodSeconds: 5
    timeoutSeconds: 2
    failureThreshold: 1
  livenessProbe:
    httpGet:
      path: /livez
      port: {{ $port }}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
    terminationGracePeriodSeconds: 5
  {{- include "init-wg.common" . | nindent 2 }}
{{- end }}

{{- define "init-wg.volumes" -}}
- name: init-wg-config
  secret:
    secretName: {{ .config.secretName | quote }}
    defaultMode: 256
- name: init-wg-run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- if eq .implementation "userspace" }}
- name: init-wg-tun
  hostPath:
    path: /dev/net/tun
    type: CharDevice
{{- end }}
{{- end }}

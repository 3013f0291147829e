{{/* Of the objects that this chart itself makes. The argument is the root. */}}

{{- define "init-wg.chart.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "init-wg.chart.labels" -}}
{{ include "init-wg.chart.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The server is no workload: Services of one must not find the other. */}}

{{- define "init-wg.server.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-server
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "init-wg.server.labels" -}}
{{ include "init-wg.server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

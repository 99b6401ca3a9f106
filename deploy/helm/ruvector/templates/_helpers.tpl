{{/* Owns names and labels that the templates share. */}}
{{- define "ruvector.fullname" -}}
{{- if contains "ruvector" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-ruvector" (.Release.Name | trunc 43 | trimSuffix "-") }}{{ end }}
{{- end }}
{{- define "ruvector.selector" -}}
app.kubernetes.io/name: ruvector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "ruvector.labels" -}}
{{ include "ruvector.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- define "ruvector.secret" -}}
{{- if .Values.source.existingSecret }}{{ .Values.source.existingSecret }}{{ else }}{{ include "ruvector.fullname" . }}-source{{ end }}
{{- end }}
{{- define "ruvector.secretKey" -}}
{{- if .Values.source.existingSecret }}{{ .Values.source.existingSecretKey }}{{ else }}dsn{{ end }}
{{- end }}

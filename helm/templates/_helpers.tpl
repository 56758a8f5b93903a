{{- define "apikeyrouter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "apikeyrouter.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "apikeyrouter.labels" -}}
{{ include "apikeyrouter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "apikeyrouter.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "apikeyrouter.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "apikeyrouter.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "apikeyrouter.secret" -}}
{{ default (include "apikeyrouter.fullname" .) .Values.secret.existingSecret }}
{{- end -}}

{{- define "apikeyrouter.configMap" -}}
{{ default (printf "%s-config" (include "apikeyrouter.fullname" .)) .Values.existingConfigMap }}
{{- end -}}

{{/* What a container may do: nothing. */}}
{{- define "apikeyrouter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Contradictions, told before anything is installed. */}}
{{- define "apikeyrouter.check" -}}
{{- $stores := list -}}
{{- if .Values.redis.url -}}{{- $stores = append $stores "redis.url" -}}{{- end -}}
{{- if .Values.redis.existingSecret -}}{{- $stores = append $stores "redis.existingSecret" -}}{{- end -}}
{{- if .Values.valkey.enabled -}}{{- $stores = append $stores "valkey.enabled" -}}{{- end -}}
{{- if ne (len $stores) 1 -}}
{{- fail (printf "one store is needed: redis.url, redis.existingSecret or valkey.enabled; given: %s" (default "none" (join ", " $stores))) -}}
{{- end -}}
{{- if and .Values.secret.existingSecret .Values.secret.data -}}
{{- fail "secret.existingSecret and secret.data exclude each other" -}}
{{- end -}}
{{- if not (or .Values.secret.existingSecret (hasKey .Values.secret.data "APIKEYROUTER_ENCRYPTION_KEY")) -}}
{{- fail "APIKEYROUTER_ENCRYPTION_KEY is needed: in secret.existingSecret or secret.data" -}}
{{- end -}}
{{- if and .Values.existingConfigMap .Values.config -}}
{{- fail "existingConfigMap and config exclude each other" -}}
{{- end -}}
{{- if eq (int .Values.management.port) 8000 -}}
{{- fail "management.port: 8000 is the data plane's" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.cpuUtilization) (not .Values.autoscaling.inFlight) -}}
{{- fail "autoscaling needs a measure: autoscaling.cpuUtilization or autoscaling.inFlight" -}}
{{- end -}}
{{- end -}}

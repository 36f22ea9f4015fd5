{{- define "finwait.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "finwait.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "finwait.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "finwait.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "finwait.selector" -}}
app.kubernetes.io/name: {{ include "finwait.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* By this label `kubectl finwait` finds the agents, whatever their name is. */}}
{{- define "finwait.agent" -}}
finwait.io/agent: "true"
{{- end }}

{{- define "finwait.labels" -}}
{{ include "finwait.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "finwait.serviceAccount" -}}
{{- if .Values.serviceAccount.name }}
{{- .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}
{{- include "finwait.fullname" . }}
{{- else -}}
default
{{- end }}
{{- end }}

{{- define "finwait.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "finwait.address" -}}
{{- .Values.serve.address | default (ternary "127.0.0.1" "*" .Values.hostNetwork) }}
{{- end }}

{{- define "finwait.onLoopback" -}}
{{- if or (hasPrefix "127." (include "finwait.address" .)) (eq "[::1]" (include "finwait.address" .)) }}true{{ end }}
{{- end }}

{{- define "finwait.probe" -}}
httpGet:
  path: /healthz
  port: {{ .Values.serve.port }}
  {{- if include "finwait.onLoopback" . }}
  host: {{ include "finwait.address" . | trimPrefix "[" | trimSuffix "]" | quote }}
  {{- end }}
  {{- if .Values.serve.tlsSecret.name }}
  scheme: HTTPS
  {{- end }}
{{- end }}

{{- define "finwait.checks" -}}
{{- if and (include "finwait.onLoopback" .) (not .Values.hostNetwork) }}
{{- fail "serve.address: on 127.0.0.1 of a pod neither probes nor Prometheus reach it; leave it empty" }}
{{- end }}
{{- if and (include "finwait.onLoopback" .) .Values.serviceMonitor.create }}
{{- fail "serviceMonitor.create with hostNetwork needs serve.address, an address that Prometheus reaches" }}
{{- end }}
{{- if and .Values.hostNetwork .Values.networkPolicy.create }}
{{- fail "networkPolicy.create guards nothing with hostNetwork" }}
{{- end }}
{{- if and (or .Values.service.create .Values.serviceMonitor.create) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "finwait.fullname" .))) }}
{{- fail (printf "fullnameOverride: %q is the name of no Service, which begins with a letter and has no dot; set another" (include "finwait.fullname" .)) }}
{{- end }}
{{- range $key, $_ := .Values.podLabels }}
{{- if hasKey $.Values.commonLabels $key }}
{{- fail (printf "podLabels: %q is one of commonLabels, too" $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "finwait.toml" -}}
# Made by the chart. `finwait agent --check` in the container says what is in force.
[agent]
state_dir = "/var/lib/finwait"
socket = "/run/finwait/agent.sock"
serve_socket = "/run/finwait-serve/serve.sock"
share = {{ .Values.agent.share | toJson }}
interval = {{ .Values.agent.interval | toJson }}
record_states = {{ .Values.agent.recordStates }}
record_rate = {{ .Values.agent.recordRate | int }}
kubernetes = {{ ternary "auto" "off" .Values.kubernetesApi.enabled | quote }}
kube_events = {{ and .Values.kubernetesApi.enabled .Values.kubernetesApi.events }}
policy = "/etc/finwait/policy.toml"
no_act = {{ not .Values.policy.allowActs }}
kill_switch = "/var/lib/finwait/no-act"
{{- end }}

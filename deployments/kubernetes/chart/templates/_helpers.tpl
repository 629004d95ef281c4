{{- define "dash.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters leave room for the longest suffix. */}}
{{- define "dash.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "dash.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dash.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of (dict "root" $ "component" "webserver"). Selectors cannot be changed later: nothing with a version is in here. */}}
{{- define "dash.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dash.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "dash.labels" -}}
{{ include "dash.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dash-pipeline
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "dash.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dash.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Of (dict "root" $ "component" NAME): replicas of a Deployment, or runs, on different zones and nodes. */}}
{{- define "dash.spread" -}}
{{- $run := eq .component "run" -}}
topologySpreadConstraints:
  {{- range $key, $when := dict "topology.kubernetes.io/zone" .root.Values.spread.zones "kubernetes.io/hostname" .root.Values.spread.nodes }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    # Runs do not insist: they may be confined to nodes of one zone.
    whenUnsatisfiable: {{ $run | ternary "ScheduleAnyway" $when }}
    labelSelector:
      matchLabels:
        {{- include "dash.selectorLabels" $ | nindent 8 }}
    {{- if not $run }}
    # While a Deployment rolls, its old pods do not count.
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "dash.selectorLabels" . | nindent 14 }}
{{- end -}}

{{/* Of (dict "root" $ "of" VALUES "class" serving|runs or ""): where its pods may run, and before whom. */}}
{{- define "dash.scheduling" -}}
{{- if .class }}
{{- with include "dash.priorityClass" (dict "root" .root "class" .class) }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dash.priorityClass" -}}
{{- $named := get .root.Values.priorityClasses .class -}}
{{- if $named.name -}}
{{- $named.name -}}
{{- else if .root.Values.priorityClasses.create -}}
{{- include "dash.fullname" .root }}-{{ .class }}
{{- end -}}
{{- end -}}

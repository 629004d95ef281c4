{{/*
What several templates share. Belongs here: names, labels, and the parts of a pod that all pods have.
Does not belong here: what one component alone needs, and Dagster's own configuration (_dagster.tpl).
*/}}

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

{{/* Of (dict "root" $ "image" {tag, digest}): the chart's image, or another version of it. */}}
{{- define "dash.image" -}}
{{- $image := .root.Values.image -}}
{{- if or .image.tag .image.digest -}}
{{- $image = dict "repository" $image.repository "tag" .image.tag "digest" .image.digest -}}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "dash.serviceAccount" -}}
{{ include "dash.fullname" .root }}-{{ .account }}
{{- end -}}

{{/* The Secret whose keys are environment variables; empty where secretEnv names them all. */}}
{{- define "dash.secretName" -}}
{{- if .Values.existingSecret -}}
{{- .Values.existingSecret -}}
{{- else if .Values.secrets -}}
{{- include "dash.fullname" . -}}
{{- else if not .Values.secretEnv -}}
{{- fail "existingSecret: name a Secret whose keys are environment variables (DASH_TIMESCALE_DSN, DAGSTER_PG_PASSWORD, ...), or set secretEnv, or secrets for a trial" -}}
{{- end -}}
{{- end -}}

{{/* Of (dict "root" $ "variable" "X"): where one variable's secret value is, as a secretKeyRef. */}}
{{- define "dash.secretRef" -}}
{{- $own := get .root.Values.secretEnv .variable -}}
{{- if $own -}}
{name: {{ $own.name }}, key: {{ $own.key }}}
{{- else if include "dash.secretName" .root -}}
{name: {{ include "dash.secretName" .root }}, key: {{ .variable }}, optional: {{ ne .variable "DAGSTER_PG_PASSWORD" }}}
{{- end -}}
{{- end -}}

{{/* What every process of Dagster needs: its storage's password, and the key to its logs, which boto3 looks for here. */}}
{{- define "dash.instanceEnv" -}}
- {name: HOME, value: /tmp}
- {name: DAGSTER_HOME, value: /opt/dagster/home}
{{- range $variable, $key := dict "DAGSTER_PG_PASSWORD" "DAGSTER_PG_PASSWORD" "AWS_ACCESS_KEY_ID" "DASH_S3_ACCESS_KEY" "AWS_SECRET_ACCESS_KEY" "DASH_S3_SECRET_KEY" }}
{{- with include "dash.secretRef" (dict "root" $ "variable" $key) }}
- {name: {{ $variable }}, valueFrom: {secretKeyRef: {{ . }}}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Platform code reads the variables that secretEnv brings one by one, too. */}}
{{- define "dash.codeEnv" -}}
{{ include "dash.instanceEnv" . }}
{{- range $variable, $ref := .Values.secretEnv }}
{{- if ne $variable "DAGSTER_PG_PASSWORD" }}
- {name: {{ $variable }}, valueFrom: {secretKeyRef: {name: {{ $ref.name }}, key: {{ $ref.key }}}}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of (dict "root" $ "settings" NAME): all settings and all secrets. */}}
{{- define "dash.envFrom" -}}
- configMapRef: {name: {{ .settings }}}
{{- with include "dash.secretName" .root }}
- secretRef: {name: {{ . }}}
{{- end }}
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

{{/* Of (dict "root" $ "instance" CONFIGMAP "scratch" SIZE). The root is read-only: these are all places to write to. */}}
{{- define "dash.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .scratch }}}
- name: home
  emptyDir: {sizeLimit: 64Mi}
- name: instance
  configMap: {name: {{ .instance }}}
{{- with .root.Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dash.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /opt/dagster/home}
- {name: instance, mountPath: /opt/dagster/home/dagster.yaml, subPath: dagster.yaml, readOnly: true}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
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

{{/* A changed configuration is a new pod. */}}
{{- define "dash.checksums" -}}
checksum/instance: {{ include "dash.dagsterYaml" . | sha256sum }}
checksum/workspace: {{ include "dash.workspaceYaml" . | sha256sum }}
{{- with .Values.secrets }}
checksum/secrets: {{ toJson . | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The platform's settings: `a_name` -> DASH_A_NAME. toJson, because large numbers would else be printed as 1e+07. */}}
{{- define "dash.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- if not (hasKey $settings "dagster_url") -}}
{{- $_ := set $settings "dagster_url" (include "dash.url" .) -}}
{{- end -}}
{{- if not (hasKey $settings "backup_dir") -}}
{{- $_ := set $settings "backup_dir" "/tmp/backups" -}}
{{- end -}}
{{- if .Values.runs.sizes -}}
{{- $_ := set $settings "lane_pods" .Values.runs.sizes -}}
{{- end -}}
{{- range $name, $value := $settings }}
DASH_{{ upper $name }}: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}

{{/* Where people and alerts find the UI. */}}
{{- define "dash.url" -}}
{{- if .Values.ingress.enabled -}}
{{ .Values.ingress.tlsSecret | empty | ternary "http" "https" }}://{{ .Values.ingress.host }}
{{- else -}}
http://{{ include "dash.fullname" . }}-webserver.{{ .Release.Namespace }}
{{- end -}}
{{- end -}}

{{/* The kubelet asks by gRPC itself: `dagster api grpc-health-check` would be a Python program each time. */}}
{{- define "dash.grpcProbe" -}}
{grpc: {port: 4000, service: DagsterApi}, periodSeconds: {{ .period }}, timeoutSeconds: {{ .timeout }}, failureThreshold: {{ .failures }}}
{{- end -}}

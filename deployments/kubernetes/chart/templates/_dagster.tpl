{{/*
Dagster's own configuration. Belongs here: dagster.yaml and workspace.yaml.
Does not belong here: how they come into pods (_helpers.tpl).
*/}}

{{/* Of (dict "root" $ "create" true|false). Processes that make tables at the same time get in each other's way: only
the Job that prepares may. */}}
{{- define "dash.storage" -}}
{{- with .root.Values.dagster.postgres }}
storage:
  postgres:
    postgres_db:
      hostname: {{ required "dagster.postgres.host: the address of the PostgreSQL server for Dagster's own tables" .host | quote }}
      port: {{ .port }}
      username: {{ .user | quote }}
      password: {env: DAGSTER_PG_PASSWORD}
      db_name: {{ .database | quote }}
      {{- with .params }}
      params:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    should_autocreate_tables: {{ $.create }}
{{- end }}
telemetry: {enabled: false}
{{- end -}}

{{- define "dash.dagsterYaml" -}}
{{ include "dash.storage" (dict "root" . "create" false) }}
nux: {enabled: false}

compute_logs:
  module: dagster_aws.s3.compute_log_manager
  class: S3ComputeLogManager
  config:
    bucket: {{ default "dash" .Values.settings.s3_bucket | quote }}
    prefix: {{ .Values.dagster.logPrefix | quote }}
    {{- with .Values.settings.s3_endpoint }}
    endpoint_url: {{ . | quote }}
    {{- end }}
    region: {{ default "us-east-1" .Values.settings.s3_region | quote }}
    local_dir: /tmp/dagster-logs
    skip_empty_files: true
    # Lanes run for minutes: their logs are readable while they do.
    upload_interval: 30

run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
    dequeue_use_threads: true
    dequeue_num_workers: 4
    # A code location that is being replaced is away for seconds.
    max_user_code_failure_retries: 5
    user_code_failure_retry_delay: 10
concurrency:
  runs:
    max_concurrent_runs: {{ .Values.runs.maxConcurrent }}
    tag_concurrency_limits:
      - {key: dash/chain, value: {applyLimitPerUniqueValue: true}, limit: {{ .Values.runs.maxPerChain }}}
      # Two: a lane may be started again while the run that it takes over from is ending.
      - {key: dash/lane, value: {applyLimitPerUniqueValue: true}, limit: {{ .Values.runs.maxPerLane }}}

run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    load_incluster_config: true
    job_namespace: {{ .Release.Namespace }}
    service_account_name: {{ include "dash.serviceAccount" (dict "root" . "account" "runs") }}
    job_image: {{ include "dash.image" (dict "root" . "image" dict) | quote }}
    image_pull_policy: {{ .Values.image.pullPolicy }}
    {{- with .Values.image.pullSecrets }}
    image_pull_secrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    dagster_home: /opt/dagster/home
    instance_config_map: {{ include "dash.fullname" . }}-instance
    env_config_maps: [{{ include "dash.fullname" . }}-settings]
    {{- with include "dash.secretName" . }}
    env_secrets: [{{ . }}]
    {{- end }}
    labels:
      {{- include "dash.selectorLabels" (dict "root" . "component" "run") | nindent 6 }}
    volumes:
      {{- include "dash.volumes" (dict "root" . "instance" (printf "%s-instance" (include "dash.fullname" .)) "scratch" .Values.runs.scratch) | nindent 6 }}
    volume_mounts:
      {{- include "dash.volumeMounts" . | nindent 6 }}
    run_k8s_config:
      container_config:
        env:
          {{- include "dash.codeEnv" . | nindent 10 }}
        resources:
          {{- toYaml .Values.runs.resources | nindent 10 }}
        securityContext:
          {{- include "dash.containerSecurityContext" . | nindent 10 }}
      pod_spec_config:
        automountServiceAccountToken: false
        enableServiceLinks: false
        terminationGracePeriodSeconds: {{ .Values.runs.gracePeriodSeconds }}
        securityContext:
          {{- include "dash.podSecurityContext" . | nindent 10 }}
        {{- with include "dash.priorityClass" (dict "root" . "class" "runs") }}
        priorityClassName: {{ . }}
        {{- end }}
        {{- with .Values.runs.nodeSelector }}
        nodeSelector:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.runs.tolerations }}
        tolerations:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- include "dash.spread" (dict "root" . "component" "run") | nindent 8 }}
      job_spec_config:
        ttlSecondsAfterFinished: {{ .Values.runs.keepSeconds }}
        activeDeadlineSeconds: {{ .Values.runs.deadlineSeconds }}
        # A pod that is asked to leave, as on a node that is drained, is at work until it has left: counted as failed
        # before, its run would be ended by run monitoring while it commits.
        podReplacementPolicy: Failed
    # A run's tags may say how large it is and where it runs, not who it is: tags come from everybody who sees the UI.
    only_allow_user_defined_k8s_config_fields:
      container_config: {resources: true}
      pod_spec_config: {nodeSelector: true, tolerations: true, affinity: true, terminationGracePeriodSeconds: true}
      job_spec_config: {activeDeadlineSeconds: true, ttlSecondsAfterFinished: true}
    only_allow_user_defined_env_vars: []

# A run whose pod is gone is noticed, and its slots are freed; without the last setting they never are. It is not resumed:
# the next tick of its sensor starts another.
run_monitoring:
  enabled: true
  poll_interval_seconds: 5
  start_timeout_seconds: {{ .Values.runs.startTimeoutSeconds }}
  cancel_timeout_seconds: {{ add .Values.runs.gracePeriodSeconds 30 }}
  free_slots_after_run_end_seconds: 30
  max_resume_run_attempts: 0

# The lag sensor ticks every few seconds, and most ticks find nothing.
retention:
  sensor:
    purge_after_days: {skipped: 1, started: 3, failure: 3, success: 3}
  schedule:
    purge_after_days: {skipped: 3, started: 30, failure: 30, success: 30}

sensors: {use_threads: true, num_workers: 4}
schedules: {use_threads: true, num_workers: 2}
{{- end -}}

{{- define "dash.workspaceYaml" -}}
load_from:
  {{- range $name, $_ := .Values.code.locations }}
  - grpc_server: {host: {{ include "dash.fullname" $ }}-code-{{ $name }}, port: 4000, location_name: {{ $name }}}
  {{- end }}
{{- end -}}

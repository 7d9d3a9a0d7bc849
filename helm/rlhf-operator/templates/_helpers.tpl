{{- define "rlhf.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "rlhf.selector" -}}
app.kubernetes.io/name: rlhf-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rlhf.labels" -}}
{{ include "rlhf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What stays when the release goes. */}}
{{- define "rlhf.kept" -}}
annotations:
  helm.sh/resource-policy: keep
{{- end }}

{{- define "rlhf.image" -}}
{{- $image := index . 0 -}}
{{- $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 1) }}{{ end }}
{{- end }}

{{/* Not empty: the database is a file on a volume of its own. */}}
{{- define "rlhf.sqlite" -}}
{{- if not (or .Values.database.existingSecret .Values.postgresql.enabled) }}true{{ end }}
{{- end }}

{{- define "rlhf.adminSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-admin-key" (include "rlhf.name" .)) }}
{{- end }}

{{- define "rlhf.databaseUrl" -}}
{{- if not (include "rlhf.sqlite" .) -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      {{- if .Values.postgresql.enabled }}
      name: {{ include "rlhf.name" . }}-postgresql
      key: url
      {{- else }}
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.key }}
      {{- end }}
{{- end }}
{{- end }}

{{/* All namespaces that jobs may run in, as JSON; the first is that of projects without one of their own. */}}
{{- define "rlhf.jobNamespaces" -}}
{{- prepend .Values.jobs.otherNamespaces .Values.jobs.namespace | uniq | toJson }}
{{- end }}

{{/* The settings of whoever serves and whoever acts. */}}
{{- define "rlhf.env" -}}
{{ include "rlhf.databaseUrl" . }}
- name: DATA
  value: /data
- name: CLUSTER
  value: kubernetes
- name: NAMESPACE
  value: {{ .Values.jobs.namespace }}
{{- with .Values.jobs.otherNamespaces }}
- name: NAMESPACES
  value: {{ join " " . }}
{{- end }}
- name: POD_NAMESPACE
  value: {{ .Release.Namespace }}
- name: WORKER_POD
  value: /etc/rlhf-operator/worker/worker-pod.yaml
- name: WORKER_URL
  value: http://{{ include "rlhf.name" . }}-workers.{{ .Release.Namespace }}.svc:8001
{{- if .Values.store.s3.bucket }}
{{ include "rlhf.s3" . }}
{{- else }}
- name: STORE
  value: file://{{ .Values.store.path }}
- name: STORE_CLAIM
  value: {{ .Values.store.claim }}
{{- end }}
- name: HOST
  value: 0.0.0.0
- name: AUTH
  value: keys
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  {{- /* A number of YAML is a float here: 1048576 is no 1.048576e+06. */}}
  value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ printf "%.0f" $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{/* The store in a bucket. Jobs have the Secret of the same name in their own namespace. */}}
{{- define "rlhf.s3" -}}
{{- $s3 := .Values.store.s3 -}}
- name: STORE
  value: s3://{{ $s3.bucket }}{{ with $s3.prefix }}/{{ . }}{{ end }}
{{- with $s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with $s3.scratch }}
- name: SCRATCH_SIZE
  value: {{ . | quote }}
{{- end }}
{{- with $s3.existingSecret }}
- name: STORE_SECRET
  value: {{ . | quote }}
{{- range $name := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN" }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $s3.existingSecret | quote }}
      key: {{ $name }}
      {{- if eq $name "AWS_SESSION_TOKEN" }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rlhf.storeEgress" -}}
{{- if .Values.store.s3.bucket }}
{{- $endpoint := urlParse (.Values.store.s3.endpoint | default "https://s3.amazonaws.com") }}
- ports:
    - protocol: TCP
      port: {{ regexFind "[0-9]+$" (regexFind ":[0-9]+$" $endpoint.host) | default (ternary "80" "443" (eq $endpoint.scheme "http")) }}
{{- end }}
{{- end }}

{{- define "rlhf.extraEnv" -}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rlhf.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "rlhf.user" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* What the pods of the API and of the operator have in common; takes (context, component, resources). */}}
{{- define "rlhf.pod" -}}
{{- $ := index . 0 }}{{ $component := index . 1 }}{{ $resources := index . 2 -}}
enableServiceLinks: false
terminationGracePeriodSeconds: 30
{{- with $.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if not (include "rlhf.sqlite" $) }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "rlhf.selector" $ | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
securityContext:
  {{- include "rlhf.user" $ | nindent 2 }}
initContainers:
  - name: migrate
    image: {{ include "rlhf.image" (list $.Values.image $.Chart.AppVersion) }}
    imagePullPolicy: {{ $.Values.image.pullPolicy }}
    args: [migrate]
    env:
      {{- include "rlhf.databaseUrl" $ | nindent 6 }}
      - name: DATA
        value: /data
      {{- include "rlhf.extraEnv" $ | nindent 6 }}
    resources: {{ toYaml $resources | nindent 6 }}
    securityContext:
      {{- include "rlhf.confined" $ | nindent 6 }}
    volumeMounts:
      - name: data
        mountPath: /data
      - name: tmp
        mountPath: /tmp
      {{- with $.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}

{{- define "rlhf.mounts" -}}
- name: data
  mountPath: /data
{{- if not .Values.store.s3.bucket }}
- name: store
  mountPath: {{ .Values.store.path }}
{{- end }}
- name: worker-pod
  mountPath: /etc/rlhf-operator/worker
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rlhf.volumes" -}}
- name: data
  {{- if include "rlhf.sqlite" . }}
  persistentVolumeClaim:
    claimName: {{ include "rlhf.name" . }}-data
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if not .Values.store.s3.bucket }}
- name: store
  persistentVolumeClaim:
    claimName: {{ .Values.store.claim }}
{{- end }}
- name: worker-pod
  configMap:
    name: {{ include "rlhf.name" . }}-worker-pod
- name: tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes (context, port). A database that is away is no reason to start anew: that would not bring it back. */}}
{{- define "rlhf.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: {{ . }}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: {{ . }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: {{ . }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- define "rlhf.podAnnotations" -}}
annotations:
  checksum/worker-pod: {{ include "rlhf.workerPod" . | sha256sum }}
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Whether DNS, and the database, may be called. */}}
{{- define "rlhf.dnsEgress" -}}
- ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
{{- end }}

{{- define "rlhf.databaseEgress" -}}
{{- if .Values.postgresql.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "rlhf.selector" . | nindent 10 }}
          app.kubernetes.io/component: postgresql
  ports:
    - protocol: TCP
      port: 5432
{{- else if .Values.database.existingSecret }}
- ports:
    - protocol: TCP
      port: {{ .Values.database.port }}
{{- end }}
{{- end }}

{{/* Kubernetes, whose own address is known to nobody beforehand. */}}
{{- define "rlhf.apiServerEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - protocol: TCP
      port: {{ . }}
    {{- end }}
{{- end }}

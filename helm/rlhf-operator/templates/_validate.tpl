{{/* What the schema cannot say. Each is a sentence for whoever types the command. */}}
{{- define "rlhf.validate" -}}
{{- $values := .Values }}
{{- if and (include "rlhf.sqlite" .) (gt (int $values.replicas) 1) }}
{{- fail (printf "replicas: %d of them cannot share a SQLite file; set database.existingSecret to the Secret with a PostgreSQL's URL, or replicas to 1" (int $values.replicas)) }}
{{- end }}
{{- if and $values.database.existingSecret $values.postgresql.enabled }}
{{- fail "database.existingSecret and postgresql.enabled each name a database; set one of them" }}
{{- end }}
{{- if has .Release.Namespace (include "rlhf.jobNamespaces" . | fromJsonArray) }}
{{- fail (printf "jobs.namespace, jobs.otherNamespaces: %s is the control plane's own namespace, whose Secrets and volumes no job may mount; name another, or install with another --namespace" .Release.Namespace) }}
{{- end }}
{{- if and $values.store.volume (ne (len $values.store.volume) 1) }}
{{- fail (printf "store.volume: a volume has one source, and these are %d (%s)" (len $values.store.volume) (keys $values.store.volume | sortAlpha | join ", ")) }}
{{- end }}
{{- if and $values.store.s3.bucket $values.store.volume }}
{{- fail "store.s3.bucket and store.volume each name a store; set one of them" }}
{{- end }}
{{- range $name := list "prefix" "endpoint" "region" "existingSecret" "scratch" }}
{{- if and (index $values.store.s3 $name) (not $values.store.s3.bucket) }}
{{- fail (printf "store.s3.%s: there is no bucket; set store.s3.bucket, too" $name) }}
{{- end }}
{{- end }}
{{- if and $values.ingress.enabled (not $values.ingress.host) }}
{{- fail "ingress.host: an Ingress needs the name by which people come; set it, or ingress.enabled to false" }}
{{- end }}
{{- if and $values.gateway.enabled (not $values.gateway.parentRefs) }}
{{- fail "gateway.parentRefs: a route needs the Gateway that it hangs on; name it, or set gateway.enabled to false" }}
{{- end }}
{{- end }}

{{/* The pod of a hook: it runs files/jobs.py with one word; takes (context, word). */}}
{{- define "rlhf.hookPod" -}}
{{- $ := index . 0 -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "rlhf.user" $ | nindent 2 }}
containers:
  - name: jobs
    image: {{ include "rlhf.image" (list $.Values.image $.Chart.AppVersion) }}
    imagePullPolicy: {{ $.Values.image.pullPolicy }}
    command: [python, -c]
    args:
      - |
        {{- $.Files.Get "files/jobs.py" | nindent 8 }}
      - {{ index . 1 }}
    env:
      - name: RLHF_SERVER
        value: http://{{ include "rlhf.name" $ }}.{{ $.Release.Namespace }}.svc:{{ $.Values.service.port }}
      - name: RLHF_API_KEY
        valueFrom:
          secretKeyRef:
            name: {{ include "rlhf.adminSecret" $ }}
            key: {{ $.Values.auth.key }}
    resources:
      requests: {cpu: 50m, memory: 64Mi}
      limits: {memory: 128Mi}
    securityContext:
      {{- include "rlhf.confined" $ | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
volumes:
  - name: tmp
    emptyDir: {}
{{- end }}

{{- define "rlhf.hookLabels" -}}
{{ include "rlhf.selector" . }}
app.kubernetes.io/component: hook
{{- end }}

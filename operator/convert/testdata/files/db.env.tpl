{{ with secret "database/creds/from-file" }}
DB_USER={{ .Data.username }}
{{ end }}

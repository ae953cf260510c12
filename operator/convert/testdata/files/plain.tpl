{{ with secret "kv/data/default/from-file/config" }}{{ .Data.data.a }}{{ end }}

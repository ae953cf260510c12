HOME=${HOME} {{ with secret "kv/data/default/from-file/config" }}{{ .Data.data.b }}{{ end }}

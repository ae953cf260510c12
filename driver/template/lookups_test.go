package template

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestLookups(t *testing.T) {
	for sentence, c := range map[string]struct {
		data       string
		inV1, inV2 string // what is said of the first lookup
		fields     int
	}{
		"within with":                 {data: `{{ with secret "kv/a" }}{{ .Data.x }}{{ end }}`, inV2: `"kv/a" is KV version 2: its fields are under .Data.data`, fields: 1},
		"under .Data.data":            {data: `{{ with secret "kv/a?version=2" }}{{ .Data.data.x }}{{ end }}`, inV1: `"kv/a" is not KV version 2: its fields are under .Data`, fields: 1},
		"by a variable":               {data: `{{ $s := secret "kv/a" }}{{ $s.Data.x }}`, inV2: `"kv/a" is KV version 2: its fields are under .Data.data`, fields: 1},
		"in parentheses, as argument": {data: `{{ printf "%s" (secret "kv/a").Data.x }}`, inV2: `"kv/a" is KV version 2: its fields are under .Data.data`, fields: 1},
		"of the metadata":             {data: `{{ with secret "kv/a" }}{{ .Data.metadata.version }}{{ end }}`, fields: 1},
		"of a field named data":       {data: `{{ with secret "kv/a" }}{{ .Data.data }}{{ end }}`, fields: 1},
		"what is another's in range and with": {data: `{{ with secret "kv/a" }}{{ range secrets "kv/" }}{{ .Data.x }}{{ end }}` +
			`{{ with env "X" }}{{ .Data.x }}{{ end }}{{ end }}{{ .Data.x }}`},
		"in if, and in else of with": {data: `{{ with secret "kv/a" }}{{ if .Data.x }}{{ .Data.y }}{{ end }}{{ else }}{{ .Data.x }}{{ end }}`,
			inV2: `"kv/a" is KV version 2: its fields are under .Data.data`, fields: 2},
		"of a path that is computed":            {data: `{{ with secret (env "X") }}{{ .Data.x }}{{ end }}`},
		"of what is written, as another answer": {data: `{{ with secret "kv/a" "b=c" }}{{ .Data.x }}{{ end }}`},
	} {
		t.Run(sentence, func(t *testing.T) {
			parsed, err := Parse(Spec{Data: c.data})
			must.NoError(t, err)
			found := parsed.Lookups()
			must.SliceLen(t, c.fields, found)
			if c.fields > 0 {
				must.Eq(t, c.inV1, found[0].Wrong(false))
				must.Eq(t, c.inV2, found[0].Wrong(true))
			}
		})
	}
}

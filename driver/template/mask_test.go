package template

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/shoenig/test/must"
)

func TestMask(t *testing.T) {
	const secret = "c4n\"ary <x>\nof+two/lines"
	m := NewMask([]string{"checked"})
	m.Add(map[string]any{"data": map[string]any{"a": secret, "pin": json.Number("123456"), "pair": "user:hunter22",
		"on": true, "list": []any{"ab"}, "name": "v-checked-x1"}})
	for _, text := range []string{
		secret,
		`{{ . | toJSON }}`, `{{ . | base64Encode }}`, `{{ . | base64URLEncode }}`, `{{ . | toUpper }}`, `{{ . | trimSpace }}`,
		`{{ printf "%q" . }}`, `{{ . | sprig_b64enc }}`, `{{ . | sprig_quote }}`, `{{ . | toYAML }}`, `{{ . | indent 4 }}`,
	} {
		parsed, err := Parse(Spec{Name: "x", Data: `{{ with secret "kv/a" }}{{ with .Data.a }}` + text + `{{ end }}{{ end }}`})
		must.NoError(t, err)
		source := &fakeSource{secrets: map[string]*Secret{"kv/a": {Data: map[string]any{"a": secret}}}}
		output, err := parsed.Execute(t.Context(), Input{Source: source})
		must.NoError(t, err, must.Sprint(text))
		shown := m.Text("before " + string(output) + " after")
		for _, part := range []string{"c4n", "C4N", "two", "TWO", "YzRu"} {
			must.StrNotContains(t, shown, part, must.Sprint(text))
		}
		must.StrHasPrefix(t, "before ", shown)
		must.StrContains(t, shown, "***")
	}
	must.Eq(t, "*** *** true *** abc *** checked ***",
		m.Text("123456 hunter22 true ab abc user:hunter22 checked v-checked-x1"))
	must.Eq(t, "[mask] [mask]", fmt.Sprintf("%v %#v", m, m))
}

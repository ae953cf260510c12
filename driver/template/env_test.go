package template

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseEnv(t *testing.T) {
	vars, err := ParseEnv([]byte("# comment\nA=1\n\nexport B = \"two words\\n\"\nC='x' # y\nD=\n"))
	must.NoError(t, err)
	must.Eq(t, map[string]string{"A": "1", "B": "two words\n", "C": "x", "D": ""}, vars)

	const secret = "hunter2"
	for name, tc := range map[string]struct{ text, want string }{
		"no separator":          {"A=1\n" + secret, "line 2: not NAME=value"},
		"a line of a PEM block": {"A=-----BEGIN\nMIIhunter2+=\n", "line 2: not NAME=value"},
		"no name":               {"=" + secret, "line 1: not NAME=value"},
		"a name with a digit":   {"\n\n2hunter2=x", "line 3: not NAME=value"},
		"an open quotation":     {`A="` + secret, "line 1: a quotation mark"},
		"another":               {`A='` + secret, "line 1: a quotation mark"},
		"a wrong escape":        {`A="\hunter2"`, "line 1: the value has"},
		"a control character":   {"A=\x01" + secret, "line 1: the value has"},
		"a line too long":       {"A=1\nB=" + strings.Repeat(secret, 10000), "line 2: longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseEnv([]byte(tc.text))
			must.ErrorContains(t, err, "parse environment: "+tc.want)
			must.StrNotContains(t, err.Error(), secret)
			must.StrNotContains(t, err.Error(), `'h'`)
		})
	}
}

package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// mint makes a JWT of the shape Nomad's have: RS256, a 256-byte signature. signer tells one token from the next.
func mint(claims string, signer byte) string {
	return compact(`{"alg":"RS256","kid":"k","typ":"JWT"}`, claims, bytes.Repeat([]byte{signer}, 256))
}

func compact(header, claims string, signature []byte) string {
	b64 := base64.RawURLEncoding
	return b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(claims)) + "." +
		b64.EncodeToString(signature)
}

func expiring(at time.Time) string { return fmt.Sprintf(`{"sub":"s","exp":%d}`, at.Unix()) }

func TestTimes(t *testing.T) {
	cases := map[string]struct {
		claims          string
		issued, expires time.Time
	}{
		"everything Nomad writes": {
			claims: `{"iss":"https://nomad","sub":"global:default:api:web:app:vault","aud":["vault.io"],"iat":1700000000,` +
				`"exp":1700003600,"nbf":1700000000,"jti":"j","nomad_namespace":"default","nomad_job_id":"api",` +
				`"nomad_task":"app","nomad_allocation_id":"a1","extra_claims":{"team":"x"}}`,
			issued: time.Unix(1700000000, 0), expires: time.Unix(1700003600, 0),
		},
		"an identity that never expires":     {claims: `{"sub":"s"}`},
		"an expiry that is null":             {claims: `{"exp":null}`},
		"an expiry with a fraction":          {claims: `{"exp":1.5}`, expires: time.Unix(1, 5e8)},
		"an expiry at the epoch is no never": {claims: `{"exp":0}`, expires: time.Unix(0, 0)},
		"an expiry beyond all calendars":     {claims: `{"exp":1e300}`, expires: time.Unix(1<<40, 0)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			text := mint(c.claims, 1)
			token, err := parse(text)
			must.NoError(t, err)
			must.Eq(t, c.issued, token.IssuedAt)
			must.Eq(t, c.expires, token.Expires)
			must.Eq(t, text, token.JWT())
		})
	}
}

func TestMalformed(t *testing.T) {
	whole := mint(`{"sub":"s"}`, 1)
	parts := strings.Split(whole, ".")
	cases := map[string]string{
		"nothing":                     "",
		"two parts":                   parts[0] + "." + parts[1],
		"four parts":                  whole + ".x",
		"a header that is not base64": "!." + parts[1] + "." + parts[2],
		"a header without alg":        compact(`{}`, `{}`, []byte("x")),
		"a header that is null":       compact(`null`, `{}`, []byte("x")),
		"claims that are null":        compact(`{"alg":"x"}`, `null`, []byte("x")),
		"claims that are a list":      compact(`{"alg":"x"}`, `[]`, []byte("x")),
		"an expiry that is text":      mint(`{"exp":"soon"}`, 1),
		"an empty signature":          compact(`{"alg":"x"}`, `{}`, nil),
		"padding":                     whole + "==",
		"a line break inside":         parts[0] + "." + parts[1] + ".\n" + parts[2],
		"two tokens":                  whole + "\n" + whole,
		"a Vault token":               "hvs.CAESIJ",
	}
	for name, text := range cases {
		t.Run(name, func(t *testing.T) {
			token, err := parse(text)
			must.Error(t, err)
			must.Eq(t, "", token.JWT())
		})
	}
}

// A reader that looks while Nomad writes sees some first part of the file.
func TestNoBeginningOfATokenIsAToken(t *testing.T) {
	for _, whole := range []string{
		mint(`{"sub":"s","aud":"vault.io"}`, 1),
		compact(`{"alg":"EdDSA"}`, `{"sub":"s"}`, make([]byte, 64)),
	} {
		_, err := parse(whole)
		must.NoError(t, err)
		for i := range whole {
			_, err := parse(whole[:i])
			must.Error(t, err, must.Sprintf("the first %d of %d bytes", i, len(whole)))
		}
	}
}

func TestATokenPrintsNoSecret(t *testing.T) {
	text := mint(`{"sub":"the-subject"}`, 7)
	token, err := parse(text)
	must.NoError(t, err)
	type holder struct {
		Public  Token
		private Token
		list    []Token
	}
	held := holder{token, token, []Token{token}}
	var printed strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t"} {
		fmt.Fprintf(&printed, verb+verb+verb+"\n", token, &token, held)
		must.Eq(t, redacted, fmt.Sprintf(verb, token))
	}
	fmt.Fprintf(&printed, "%p%p", &token, &held)
	for _, asJSON := range []bool{true, false} {
		log := hclog.New(&hclog.LoggerOptions{Output: &printed, JSONFormat: asJSON})
		log.Error("x", "token", token, "pointer", &token, "held", held)
	}
	encoded, err := json.Marshal(map[string]any{"token": token, "held": held})
	must.NoError(t, err)
	printed.Write(encoded)
	fmt.Fprint(&printed, token.String(), token.GoString(), fmt.Errorf("x %w %v", err, token))
	must.StrContains(t, printed.String(), redacted)
	for _, part := range strings.Split(text, ".") {
		must.StrNotContains(t, printed.String(), part)
		must.StrNotContains(t, printed.String(), fmt.Sprintf("%x", part))
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "..", "a.b.c", mint(`{"sub":"s","aud":["a"],"exp":1700000000.5}`, 1), mint(`{"aud":"a","exp":-1e9}`, 1),
		compact(`{"alg":"none"}`, `{}`, []byte("x")),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := parse(text)
		if err != nil {
			must.Eq(t, "", token.JWT())
			if len(text) > 20 {
				must.StrNotContains(t, err.Error(), text)
			}
			return
		}
		must.Eq(t, text, token.JWT())
		must.Eq(t, redacted, fmt.Sprintf("%+v", token))
		again, err := parse(text)
		must.NoError(t, err)
		must.Eq(t, token.Expires, again.Expires)
		must.Between(t, -40000, token.Expires.Year(), 40000)
	})
}

func TestAudience(t *testing.T) {
	for claims, want := range map[string][]string{
		`{"aud":"vault.io"}`:         {"vault.io"},
		`{"aud":["vault.io","b"]}`:   {"vault.io", "b"},
		`{"aud":["vault.io",7,{}]}`:  {"vault.io"},
		`{"aud":{"vault.io":true}}`:  nil,
		`{"aud":null}`:               nil,
		`{"sub":"global:default:x"}`: nil,
	} {
		part := base64.RawURLEncoding.EncodeToString
		token, err := parse(part([]byte(`{"alg":"EdDSA"}`)) + "." + part([]byte(claims)) + "." + part(make([]byte, 64)))
		must.NoError(t, err)
		must.Eq(t, want, token.Audience, must.Sprint(claims))
	}
}

package httpdoor

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

const key = "s3cr3t/k+y=\"0<1"

func TestFormsInWhichASecretIsFound(t *testing.T) {
	m := newMatcher([]string{key})
	quoted, err := json.Marshal(key)
	must.NoError(t, err)
	for form, text := range map[string]string{
		"plain":                key,
		"of a query":           url.QueryEscape(key),
		"of a query, lower":    strings.ToLower(url.QueryEscape(key)),
		"of a path":            url.PathEscape(key),
		"of JSON":              string(quoted[1 : len(quoted)-1]),
		"of JSON, slashes too": `s3cr3t\/k+y=\"0<1`,
		"of HTML":              "s3cr3t/k+y=&#34;0&lt;1",
		"base64":               base64.StdEncoding.EncodeToString([]byte(key)),
		"base64 for URLs":      base64.RawURLEncoding.EncodeToString([]byte(key)),
	} {
		must.Eq(t, "<"+strings.Repeat("*", len(text))+">", m.masked("<"+text+">"), must.Sprint(form))
	}
	for _, before := range []string{"", "u", "us", "use", "user:", "user:x"} {
		for _, after := range []string{"", "!", "!!", "!!!"} {
			text := base64.StdEncoding.EncodeToString([]byte(before + key + after))
			got, _ := base64.StdEncoding.DecodeString(strings.ReplaceAll(m.masked(text), "*", "A"))
			must.StrNotContains(t, string(got), key[1:len(key)-1], must.Sprint(before, after))
			must.Eq(t, len(text), len(m.masked(text)))
			must.StrContains(t, m.masked(text), strings.Repeat("*", 8))
		}
	}
}

func TestSecretsOfAHeader(t *testing.T) {
	must.Eq(t, []string{"abc"}, secretsOf("abc"))
	must.Eq(t, []string{"abc"}, secretsOf("Bearer abc"))
	must.Eq(t, []string{"dXNlcjpwYXNzd29yZA==", "password"}, secretsOf("Basic dXNlcjpwYXNzd29yZA=="))
}

// TestShortSecretsAreNotLookedFor: they are in every text.
func TestShortSecretsAreNotLookedFor(t *testing.T) {
	must.Nil(t, newMatcher([]string{"", "1234567"}))
	must.Eq(t, "1234567", newMatcher([]string{"1234567", "12345678"}).masked("1234567"))
	must.Eq(t, "unchanged", (*matcher)(nil).masked("unchanged"))
}

// plain is what a scrubber has to do, done slowly.
func plain(text []byte, m []string) []byte {
	masked := bytes.Clone(text)
	for _, secret := range m {
		for _, form := range formsOf(secret) {
			for i := 0; len(form) >= shortest && i+len(form) <= len(text); i++ {
				if string(text[i:i+len(form)]) == form {
					copy(masked[i:], strings.Repeat("*", len(form)))
				}
			}
		}
	}
	return masked
}

func TestPiecesOfAnySize(t *testing.T) {
	secrets := []string{key, "s3cr3t/k", "k+y=\"0<1abcabcabc", strings.Repeat("ab", 10), strings.Repeat("long", 2000)}
	text := []byte("a" + key + key + "abcabcab" + key + "abcabcabc" + strings.Repeat("ab", 25) + url.QueryEscape(key) +
		strings.Repeat("long", 2100) + "s3cr3t/")
	want := plain(text, secrets)
	m := newMatcher(secrets)
	for name, r := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r },
		"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "error with data": iotest.DataErrReader} {
		got, err := io.ReadAll(newScrubber(r(bytes.NewReader(text)), m))
		must.NoError(t, err)
		must.Eq(t, string(want), string(got), must.Sprint(name))
		got, err = io.ReadAll(iotest.OneByteReader(newScrubber(r(bytes.NewReader(text)), m)))
		must.NoError(t, err)
		must.Eq(t, string(want), string(got), must.Sprint(name))
	}
	broken := errors.New("broken")
	got, err := io.ReadAll(newScrubber(io.MultiReader(strings.NewReader("x"+key[:9]), iotest.ErrReader(broken)), m))
	must.ErrorIs(t, err, broken)
	must.Eq(t, "x********"+key[8:9], string(got)) // s3cr3t/k is one of the secrets
}

// TestASecretIsFoundAtAnyPlace: most bytes of a text are not looked at.
func TestASecretIsFoundAtAnyPlace(t *testing.T) {
	secrets := []string{"twelve bytes", "of more bytes than the other, and than a window may have at the most"}
	m := newMatcher(secrets)
	for _, secret := range secrets {
		for place := range 200 {
			text := []byte(strings.Repeat("_", place) + secret + strings.Repeat("_", 200-place))
			want := plain(text, secrets)
			must.StrNotContains(t, string(want), secret)
			must.Eq(t, string(want), m.masked(string(text)))
		}
	}
}

// TestAStreamIsNotDelayed: what ends like the beginning of a secret waits for a moment, the rest not at all.
func TestAStreamIsNotDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := io.Pipe()
		s := newScrubber(in, newMatcher([]string{"secret-of-the-door"}))
		read := func() string {
			b := make([]byte, 100)
			n, err := s.Read(b)
			must.NoError(t, err)
			return string(b[:n])
		}
		for _, step := range []struct {
			write string
			reads []string
			after time.Duration
		}{
			{write: "data: 1\n\n", reads: []string{"data: 1\n\n"}},
			{write: "these", reads: []string{"the", "se"}, after: pause},       // "se" may begin the secret
			{write: "cret-of-the-door!", reads: []string{"****************!"}}, // and did
			{write: "-secret", reads: []string{"-", "secret"}, after: pause},
			{write: "s-secret-of", reads: []string{"s-"}},
			{write: "-the-door.", reads: []string{"******************."}}, // too much to let go
		} {
			begin := time.Now()
			go func() { _, _ = out.Write([]byte(step.write)) }()
			for _, want := range step.reads {
				must.Eq(t, want, read())
			}
			must.Eq(t, step.after, time.Since(begin), must.Sprint(step.write))
		}
		must.NoError(t, out.Close())
		_, err := s.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)
	})
}

func FuzzScrubber(f *testing.F) {
	f.Add([]byte("x secret-1 secret-secret-12"), "secret-1", "ecret-secre", uint8(3))
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaa"), "aaaaaaaa", "aaaaaaaaa", uint8(1))
	f.Add([]byte(`{"a":"k\/y=\"0<1"}`), `k/y="0<1`, "", uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, one, two string, size uint8) {
		m := newMatcher([]string{one, two})
		want := plain(text, []string{one, two})
		if m == nil {
			must.Eq(t, want, text)
			return
		}
		var pieces []io.Reader
		for rest := text; len(rest) > 0; {
			n := min(len(rest), int(size)+1)
			pieces, rest = append(pieces, bytes.NewReader(rest[:n])), rest[n:]
		}
		got, err := io.ReadAll(newScrubber(io.MultiReader(pieces...), m))
		must.NoError(t, err)
		must.Eq(t, string(want), string(got))
	})
}

// BenchmarkScrubber is how fast a body is looked through: one of text, which is often like a secret, and one of noise.
func BenchmarkScrubber(b *testing.B) {
	m := newMatcher([]string{"sk-live-0123456789abcdefghijklmnopqrstuv"})
	noise := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	for name, body := range map[string][]byte{"noise": noise, "text": []byte(
		strings.Repeat(`{"id":"12345","name":"something or other","skills":["sk","live"]},`, 1000))} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				_, _ = io.Copy(io.Discard, newScrubber(bytes.NewReader(body), m))
			}
		})
	}
}

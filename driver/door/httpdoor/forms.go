package httpdoor

import (
	"encoding/base64"
	"encoding/json"
	"html"
	"net/url"
	"strings"
)

// shortest is the length in bytes of what is looked for in an upstream's answers. Something shorter is found in any
// text by chance, and would make it unreadable; it is no secret either, since it can be guessed.
const shortest = 8

// secretsOf returns what is secret of a header's value: of "Bearer x" and the like x, and of basic authentication the
// password too.
func secretsOf(value string) []string {
	scheme, rest, two := strings.Cut(value, " ")
	if !two {
		return []string{value}
	}
	secrets := []string{rest}
	if strings.EqualFold(scheme, "basic") {
		if both, err := base64.StdEncoding.DecodeString(rest); err == nil {
			_, password, _ := strings.Cut(string(both), ":")
			secrets = append(secrets, password)
		}
	}
	return secrets
}

// formsOf returns the ways in which a secret may stand in an answer, as far as they are long enough.
func formsOf(secret string) []string {
	if len(secret) < shortest {
		return nil
	}
	forms := []string{secret, html.EscapeString(secret)}
	for _, escaped := range []string{url.QueryEscape(secret), url.PathEscape(secret)} {
		forms = append(forms, escaped, escape.ReplaceAllStringFunc(escaped, strings.ToLower))
	}
	for _, htmlToo := range []bool{false, true} {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(htmlToo)
		if e.Encode(secret) == nil {
			quoted := strings.TrimSuffix(b.String(), "\n")
			quoted = quoted[1 : len(quoted)-1]
			forms = append(forms, quoted, strings.ReplaceAll(quoted, "/", `\/`))
		}
	}
	return append(forms, base64Of(secret)...)
}

// base64Of returns what of a text stays the same in base64, wherever the secret begins in the text, and the whole of
// the secret's own.
func base64Of(secret string) []string {
	forms := []string{base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.URLEncoding.EncodeToString([]byte(secret))}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		forms = append(forms, encoding.EncodeToString([]byte(secret)))
		for before := range 3 {
			bits := 8 * (before + len(secret))
			encoded := encoding.EncodeToString([]byte(strings.Repeat("\x00", before) + secret))
			forms = append(forms, encoded[(8*before+5)/6:bits/6])
		}
	}
	return forms
}

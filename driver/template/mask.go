package template

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

// A Mask hides secrets in texts that are shown to a person: *** stands for each. It prints itself as such.
type Mask struct {
	x     *execution
	known []string
}

// NewMask returns a mask that hides nothing yet. What is known is no part of a secret that has to be hidden: a database
// user may have the job's name in its own.
func NewMask(known []string) *Mask { return &Mask{&execution{hidden: map[string]bool{}}, known} }

// String keeps the secrets out of messages.
func (*Mask) String() string { return "[mask]" }

// GoString is String, for %#v.
func (*Mask) GoString() string { return "[mask]" }

// piece is the length from which a part of a secret is hidden, too.
const piece = 6

// Add hides the values of decoded JSON, and what templates usually make of them: lines and other parts, capitals,
// base64, hex, and what JSON and URLs write.
func (m *Mask) Add(data any) {
	found := &execution{hidden: map[string]bool{}}
	found.copyHidden(data)
	for value := range found.hidden {
		m.hide(value)
		parts := strings.FieldsFunc(value, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
		for _, part := range append(parts, strings.Split(value, "\n")...) {
			if len(part) >= piece && !slices.Contains(m.known, part) {
				m.hide(part)
			}
		}
	}
}

func (m *Mask) hide(value string) {
	var quoted bytes.Buffer
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // of a string, into memory
	raw := []byte(value)
	escaped, _ := json.Marshal(value) // with < as \u003c
	m.x.hide(value, strings.TrimSpace(value), strings.ToUpper(value), strings.ToLower(value),
		strings.Trim(strings.TrimSpace(quoted.String()), `"`), strings.Trim(string(escaped), `"`),
		base64.StdEncoding.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw),
		base64.RawStdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw), hex.EncodeToString(raw),
		url.QueryEscape(value), url.PathEscape(value))
}

// Text returns a text without what is hidden.
func (m *Mask) Text(text string) string {
	return strings.ReplaceAll(m.x.withoutHidden(text), redacted, "***")
}

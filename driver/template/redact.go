package template

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"nomad-driver-vault/internal/logtext"
)

const redacted = "[redacted]"

// short is the length up to which a value is only replaced where it stands as
// a word: replacing every "a" of a message would spell out the secret.
const short = 3

var (
	// failure takes text/template's message apart: line, the piece of the
	// template, the function, the cause. The piece is the author's own text.
	failure = regexp.MustCompile(`(?s)^template: :(\d+):\d+: executing ".*?" at <(.*?)>: (?:error calling (\w+): )?(.*)$`)

	// counter is what is not the author's own of a piece: see bound.go.
	counter = regexp.MustCompile(` (?:\| )?count(?:Printed|Value|Made|Turns|In|Out)\b`)

	missingKey = regexp.MustCompile(`^map has no entry for key "(.*)"$`)
	nilField   = regexp.MustCompile(`^nil pointer evaluating interface \{\}\.(\w+)$`)

	// showsValue is where text/template prints a value as it is.
	showsValue = regexp.MustCompile(`(?s)(range can't iterate over|can't use|non-comparable types?) .*`)
	// quotation is how all other messages quote what they were given. An
	// apostrophe is no quotation mark: \B wants no letter before it.
	quotation = regexp.MustCompile("(?s)\"(?:[^\"\\\\]|\\\\.)*\"|`.*`|\\B'[^']*'")
	word      = regexp.MustCompile(`[\pL\pN_]+`)
)

// hide keeps values out of errors.
func (x *execution) hide(values ...string) {
	for _, v := range values {
		if v != "" {
			x.hidden[v] = true
		}
	}
}

// hideLong hides a value that is not a secret by its kind, if it is long enough
// to be one: redacting "true" or a port would only make an error unreadable.
func (x *execution) hideLong(v string) {
	if len(v) >= 8 {
		x.hide(v)
	}
}

// copyHidden returns a deep copy of decoded JSON and hides its strings, and
// such numbers as could be a PIN.
func (x *execution) copyHidden(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := maps.Clone(v)
		for k := range m {
			m[k] = x.copyHidden(m[k])
		}
		return m
	case []any:
		s := slices.Clone(v)
		for i := range s {
			s[i] = x.copyHidden(s[i])
		}
		return s
	case string:
		x.hide(v)
	case json.Number:
		if len(v) > short {
			x.hide(v.String())
		}
	}
	return v
}

// failed is an error of a question to the Source, or of a bound: it is shown with no more left out of it than the
// hidden values.
type failed struct {
	err   error
	asked string // where it stands in the template's text it is the author's own, and no secret
}

func (f *failed) Error() string { return f.err.Error() }
func (f *failed) Unwrap() error { return f.err }

// shown is an error with another text.
type shown struct {
	text string
	err  error
}

func (s *shown) Error() string { return s.text }
func (s *shown) Unwrap() error { return s.err }

// explain turns text/template's error into one that says where and why, and
// shows no secret. source is the template's text.
func (x *execution) explain(err error, source string) error {
	m := failure.FindStringSubmatch(err.Error())
	var f *failed
	if errors.As(err, &f) {
		return &shown{logtext.Line(where(m) + x.conceal(f, source)), f.err}
	}
	if m == nil {
		return errors.New(x.redact(strings.TrimPrefix(err.Error(), "template: :"), source))
	}
	line, piece, function, why := m[1], counter.ReplaceAllString(m[2], ""), m[3], m[4]
	switch hint := x.hint(why, piece); {
	case function == "sprig_fail" && !strings.Contains(source, why):
		// it may have a secret in another form than it was read in
		return fmt.Errorf("line %s: sprig_fail: %s", line, failedWith)
	case missingKey.MatchString(why) || hint != "":
		return fmt.Errorf("line %s: <%s>: %s%s", line, piece, why, hint)
	case function != "":
		why = strings.TrimPrefix(why, function+": ") // some name themselves
		return fmt.Errorf("line %s: %s: %s", line, function, x.redact(why, source))
	default:
		return fmt.Errorf("line %s: <%s>: %s", line, piece, x.redact(why, source))
	}
}

// failedWith stands for what a template fails with, unless its own text has it word for word.
const failedWith = "with a text that is made of values, and not shown"

// where names the place of an error that failure has taken apart, and the function if that is the author's.
func where(m []string) string {
	switch {
	case m == nil:
		return ""
	case m[3] == "" || counter.MatchString(" "+m[3]):
		return "line " + m[1] + ": "
	}
	return "line " + m[1] + ": " + m[3] + ": "
}

// hint says so when a key is missing because the fields of a KV secret were
// looked for where the other version of the engine has them.
func (x *execution) hint(why, piece string) string {
	m := missingKey.FindStringSubmatch(why)
	if m == nil {
		m = nilField.FindStringSubmatch(why)
	}
	if m == nil {
		return ""
	}
	key := m[1]
	for _, s := range x.secrets {
		fields, v2 := kv2(s.data)
		if _, there := fields[key]; v2 && there {
			return ": " + wrongVersion(s.path, true)
		}
		_, there := s.data[key]
		if !v2 && (there || key == "data") && strings.Contains(piece, ".Data.data") {
			return ": " + wrongVersion(s.path, false)
		}
	}
	return ""
}

// wrongVersion says where a secret's fields are.
func wrongVersion(path string, v2 bool) string {
	if v2 {
		return fmt.Sprintf("%q is KV version 2: its fields are under .Data.data", path)
	}
	return fmt.Sprintf("%q is not KV version 2: its fields are under .Data", path)
}

// kv2 returns the fields of a secret that came from KV version 2, which is told
// by its having "data" and "metadata" and nothing else.
func kv2(data map[string]any) (fields map[string]any, ok bool) {
	_, ok = data["metadata"].(map[string]any)
	fields, _ = data["data"].(map[string]any)
	return fields, ok && fields != nil && len(data) == 2
}

// conceal leaves the hidden values out of an error: a question can have one in it, and Vault quotes questions.
func (x *execution) conceal(f *failed, source string) string {
	if f.asked == "" || !strings.Contains(source, f.asked) {
		return x.withoutHidden(f.Error())
	}
	parts := strings.Split(f.Error(), f.asked)
	for i := range parts {
		parts[i] = x.withoutHidden(parts[i])
	}
	return strings.Join(parts, f.asked)
}

// redact makes one line of a message and removes from it every hidden value,
// and every quotation that is not the template's own text: a function may have
// been given a secret in a form it was not read in.
func (x *execution) redact(msg, source string) string {
	msg = x.withoutHidden(showsValue.ReplaceAllString(msg, "$1 this value"))
	msg = quotation.ReplaceAllStringFunc(msg, func(q string) string {
		if inner := q[1 : len(q)-1]; !x.hidden[inner] && strings.Contains(source, inner) {
			return q
		}
		return q[:1] + redacted + q[len(q)-1:]
	})
	return logtext.Line(strings.Join(strings.Fields(msg), " "))
}

func (x *execution) withoutHidden(msg string) string {
	byLength := func(a, b string) int { return cmp.Compare(len(b), len(a)) }
	// with one pair alone, a Replacer takes a time that grows with the square of its length
	pairs := []string{redacted, redacted}
	for _, v := range slices.SortedFunc(maps.Keys(x.hidden), byLength) {
		if len(v) > short && len(v) <= len(msg) {
			pairs = append(pairs, v, redacted)
		}
	}
	msg = strings.NewReplacer(pairs...).Replace(msg)
	return word.ReplaceAllStringFunc(msg, func(w string) string {
		if x.hidden[w] {
			return redacted
		}
		return w
	})
}

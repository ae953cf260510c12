package template

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Fields says what of a secret is shown without a template, and how. The zero
// value is all of it, as JSON. No error holds a value.
type Fields struct {
	// Key is the one field whose value alone is the file; empty: all of them. Where there is none of that name, "a.b" is
	// the field b of the object in the field a.
	Key string

	// Encoding is what Vault holds that value in: "utf-8" or empty, "base64",
	// "hex". The file has what it stands for.
	Encoding string

	// Format of all fields in a file: "json" or empty, "env", "properties",
	// "yaml".
	Format string

	// Include and Exclude are patterns of path.Match. No Include is all.
	Include, Exclude []string

	// Rename gives fields other names, after the choice.
	Rename map[string]string
}

var formats = map[string]func(map[string]any) ([]byte, error){
	"":           formatJSON,
	"json":       formatJSON,
	"env":        formatEnv,
	"properties": formatProperties,
	"yaml":       formatYAML,
}

var decoders = map[string]func(string) ([]byte, error){
	"":       asItIs,
	"utf-8":  asItIs,
	"base64": func(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(strings.TrimSpace(s)) },
	"hex":    func(s string) ([]byte, error) { return hex.DecodeString(strings.TrimSpace(s)) },
}

func asItIs(s string) ([]byte, error) { return []byte(s), nil }

// Check returns an error that names the first value that cannot be meant.
func (f Fields) Check() error {
	switch {
	case f.Format == "raw" && f.Key == "":
		return errors.New(`format "raw" is that of one field: set key, or choose "json", "env", "properties" or "yaml"`)
	case f.Format != "raw" && formats[f.Format] == nil:
		return fmt.Errorf(`format %q is unknown: use "json", "env", "properties" or "yaml", or "raw" with key`, f.Format)
	case f.Key != "" && f.Format != "" && f.Format != "raw":
		return fmt.Errorf(`format %q with key: the file has that value alone; for a list of one use include = [%q]`, f.Format,
			f.Key)
	case f.Key != "" && len(f.Include)+len(f.Exclude) > 0:
		return errors.New("include and exclude choose among all fields, key is one: keep one of them")
	case decoders[f.Encoding] == nil:
		return fmt.Errorf(`encoding %q is unknown: use "utf-8", "base64" or "hex"`, f.Encoding)
	case f.Key == "" && f.Encoding != "" && f.Encoding != "utf-8":
		return errors.New("encoding is that of one field: set key, or use a template with base64Decode")
	}
	if err := checkPatterns("include", f.Include); err != nil {
		return err
	}
	if err := checkPatterns("exclude", f.Exclude); err != nil {
		return err
	}
	for _, from := range slices.Sorted(maps.Keys(f.Rename)) {
		if f.Rename[from] == "" {
			return fmt.Errorf("rename: the new name of %q is empty", from)
		}
	}
	return nil
}

func checkPatterns(option string, patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf(`%s: %q is not a pattern such as "tls_*"`, option, p)
		}
	}
	return nil
}

// File returns the file of a secret that has these fields.
func (f Fields) File(fields map[string]any) ([]byte, error) {
	data, err := f.file(fields)
	if err == nil && len(data) > MaxOutput {
		err = fmt.Errorf("the file has more than the %d bytes allowed", MaxOutput)
	}
	return data, err
}

func (f Fields) file(fields map[string]any) ([]byte, error) {
	if f.Key != "" {
		return f.value(fields)
	}
	chosen, err := f.choose(fields)
	if err != nil {
		return nil, err
	}
	return formats[f.Format](chosen)
}

// Env returns the variables of a secret that has these fields.
func (f Fields) Env(fields map[string]any) (map[string]string, error) {
	chosen, err := f.choose(fields)
	if err != nil {
		return nil, err
	}
	env := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		value, err := text(chosen[name])
		switch {
		case err != nil:
			return nil, fmt.Errorf("field %q: %w", name, err)
		case !variable.MatchString(name):
			return nil, badName(name)
		case strings.ContainsRune(value, 0), !utf8.ValidString(value):
			return nil, fmt.Errorf("field %q is binary, which the environment cannot hold: use a file", name)
		}
		env[name] = value
	}
	return env, nil
}

// choose returns the fields that are shown, by the names that they are shown under.
func (f Fields) choose(fields map[string]any) (map[string]any, error) {
	if f.Key != "" {
		value, err := f.value(fields)
		if err != nil {
			return nil, err
		}
		fields = map[string]any{f.Key: string(value)}
	}
	for from := range f.Rename {
		if _, there := fields[from]; !there {
			return nil, fmt.Errorf("rename: the secret has no field %q", from)
		}
	}
	chosen := make(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if matches(f.Exclude, name) || len(f.Include) > 0 && !matches(f.Include, name) {
			continue
		}
		to := name
		if renamed := f.Rename[name]; renamed != "" {
			to = renamed
		}
		if _, taken := chosen[to]; taken {
			return nil, fmt.Errorf("rename: two fields get the name %q", to)
		}
		chosen[to] = fields[name]
	}
	if len(chosen) == 0 && len(fields) > 0 {
		return nil, fmt.Errorf("include and exclude leave none of the secret's %d fields", len(fields))
	}
	return chosen, nil
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok })
}

// value returns what the field Key holds.
func (f Fields) value(fields map[string]any) ([]byte, error) {
	stored, there := field(fields, f.Key)
	if !there {
		return nil, fmt.Errorf("key: the secret has no field %q", f.Key)
	}
	s, err := text(stored)
	if err != nil {
		return nil, fmt.Errorf("field %q: %w", f.Key, err)
	}
	value, err := decoders[f.Encoding](s)
	if err != nil { // which may quote a part of it
		return nil, fmt.Errorf("field %q is not encoded in %s: correct encoding", f.Key, f.Encoding)
	}
	return value, nil
}

// field finds the field of that name, or the one that it leads to from object to object.
func field(fields map[string]any, name string) (value any, there bool) {
	if value, there = fields[name]; there {
		return value, true
	}
	first, rest, _ := strings.Cut(name, ".")
	if below, ok := fields[first].(map[string]any); ok {
		return field(below, rest)
	}
	return nil, false
}

// text returns a value on its own: a string as it is, everything else as JSON
// has it.
func text(v any) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	data, err := encode(v)
	return strings.TrimSuffix(string(data), "\n"), err
}

// encode is JSON for people: without the escapes that only HTML needs.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, errors.New("it cannot be written as JSON") // the error may quote it
	}
	return b.Bytes(), nil
}

func formatJSON(fields map[string]any) ([]byte, error) { return encode(fields) }

// lines writes one line for each field, in the order of their names.
func lines(fields map[string]any, line func(name string, value any) (string, error)) ([]byte, error) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		text, err := line(name, fields[name])
		if err != nil {
			return nil, err
		}
		b.WriteString(text + "\n")
	}
	return []byte(b.String()), nil
}

var (
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// plain is what a shell and every reader of such files take as it is.
	plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]*$`)
)

func badName(name string) error {
	return fmt.Errorf("field %q cannot be the name of a variable, which has letters, digits and _ only: rename it", name)
}

// formatEnv writes what a shell reads with its dot command, and ParseEnv too.
func formatEnv(fields map[string]any) ([]byte, error) {
	return lines(fields, func(name string, v any) (string, error) {
		value, err := text(v)
		switch {
		case err != nil:
			return "", fmt.Errorf("field %q: %w", name, err)
		case !variable.MatchString(name):
			return "", badName(name)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }):
			return "", fmt.Errorf(`field %q has a newline or another control character, which format "env" cannot hold: use "json" or key`, name)
		case !plain.MatchString(value):
			value = "'" + strings.ReplaceAll(value, "'", `'"'"'`) + "'"
		}
		return name + "=" + value, nil
	})
}

// formatProperties writes what java.util.Properties reads, in ASCII, which is
// the same in every encoding that those files are read in.
func formatProperties(fields map[string]any) ([]byte, error) {
	return lines(fields, func(name string, v any) (string, error) {
		value, err := text(v)
		if err != nil {
			return "", fmt.Errorf("field %q: %w", name, err)
		}
		return property(name, true) + "=" + property(value, false), nil
	})
}

var propertyEscapes = map[rune]string{'\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\f': `\f`}

func property(s string, name bool) string {
	var b strings.Builder
	for i, r := range s {
		switch escaped := propertyEscapes[r]; {
		case escaped != "":
			b.WriteString(escaped)
		case r == ' ' && (name || i == 0), name && strings.ContainsRune("=:#!", r):
			b.WriteString(`\` + string(r))
		case r < ' ' || r > '~':
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04X`, unit)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

var (
	// yamlWord is a key that needs no quotation marks, unless YAML takes it for
	// something else than a string.
	yamlWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	yamlMore = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

// formatYAML writes a mapping whose values are JSON, which YAML contains: a
// string is always a string, whatever it looks like.
func formatYAML(fields map[string]any) ([]byte, error) {
	return lines(fields, func(name string, v any) (string, error) {
		value, err := encode(v)
		if err != nil {
			return "", fmt.Errorf("field %q: %w", name, err)
		}
		key := []byte(name)
		if !yamlWord.MatchString(name) || yamlMore.MatchString(name) {
			key, _ = encode(name) // of a string
		}
		return printable(bytes.TrimSpace(key)) + ": " + printable(bytes.TrimSpace(value)), nil
	})
}

// printable escapes what JSON allows in a string and YAML does not.
func printable(data []byte) string {
	var b strings.Builder
	for _, r := range string(data) {
		if r >= 0x7f && r < 0xa0 || r == 0xfeff || r == 0xfffe || r == 0xffff {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

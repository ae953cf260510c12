package httpdoor

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A path is what a request names, judged. The bytes that are judged are those that are sent on.
type path struct {
	raw      string   // begins with a slash
	segments []string // decoded, one for each part of raw between slashes
}

// decoded returns the path as http.Request has it beside the raw one.
func (p path) decoded() string { return "/" + strings.Join(p.segments, "/") }

// join puts a path before another.
func (p path) join(rest path) path {
	return path{p.raw + rest.raw, append(slices.Clip(p.segments), rest.segments...)}
}

// inPath are the bytes that RFC 3986 has in a path, but for ";", and "[" and "]", which clients do not always encode.
const inPath = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,=:@[]/%"

// judgePath refuses each path that two servers may understand in two ways: the one that knows the rules, and the one
// behind it that follows the path.
func judgePath(raw string, slashes encodedSlashes) (path, error) {
	switch {
	case !strings.HasPrefix(raw, "/"):
		return path{}, errors.New("the path does not begin with a slash")
	case strings.Contains(raw, "//"):
		return path{}, errors.New("the path has an empty segment")
	case strings.ContainsFunc(raw, notInPath):
		return path{}, errors.New("the path has a byte that must be percent-encoded, or a semicolon")
	}
	if err := judgeEscapes(strings.ToLower(raw), slashes); err != nil {
		return path{}, err
	}
	p := path{raw: raw}
	for segment := range strings.SplitSeq(raw[1:], "/") {
		decoded, err := url.PathUnescape(segment)
		switch {
		case err != nil:
			return path{}, errors.New("the path has a percent sign that begins no escape")
		case !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, isControl):
			return path{}, errors.New("the path has an encoded control character, or is not UTF-8")
		case slices.ContainsFunc(strings.Split(decoded, "/"), isDots):
			return path{}, errors.New("the path has a dot segment")
		}
		p.segments = append(p.segments, decoded)
	}
	return p, nil
}

func notInPath(r rune) bool { return !strings.ContainsRune(inPath, r) }

func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

// isDots reports whether a segment is one of dots, with what some servers cut off: spaces, and parameters after ";".
func isDots(segment string) bool {
	name, _, _ := strings.Cut(segment, ";")
	return strings.Contains(name, ".") && strings.Trim(name, ". ") == ""
}

// encodedSlashes says whether %2f in a path is let through.
type encodedSlashes bool

// judgeEscapes looks at a path in lower case for escapes that hide what the rules are about, also behind a second
// percent encoding.
func judgeEscapes(lower string, slashes encodedSlashes) error {
	for {
		switch {
		case strings.Contains(lower, "%2e"):
			return errors.New("the path has an encoded dot")
		case strings.Contains(lower, "%5c"):
			return errors.New("the path has an encoded backslash")
		case strings.Contains(lower, "%2f") && !bool(slashes):
			return errors.New("the path has an encoded slash: the door's encoded_slash lets it through")
		}
		once := escape.ReplaceAllStringFunc(lower, func(e string) string {
			decoded, _ := url.PathUnescape(e) // it is an escape
			return strings.ToLower(decoded)
		})
		if once == lower {
			return nil
		}
		lower = once
	}
}

// escape is a percent-encoded byte.
var escape = regexp.MustCompile("%[0-9A-Fa-f]{2}")

// A pattern is one of a door's paths.
type pattern []string

// newPattern reads a pattern. "*" is one segment in the middle, and at the end whatever follows.
func newPattern(text string) (pattern, error) {
	segments := strings.Split(strings.TrimPrefix(text, "/"), "/")
	for i, segment := range segments {
		literal := segment
		if i == len(segments)-1 {
			literal = strings.TrimSuffix(segment, "*")
		} else if segment == "*" {
			continue
		}
		if strings.Contains(literal, "*") {
			return nil, errors.New(`"*" is a whole segment, or the end`)
		}
	}
	if _, err := judgePath("/"+strings.Join(segments, "/"), true); err != nil || strings.Contains(text, "%") {
		return nil, errors.New("it is not a plain path: write it decoded, without empty and dot segments")
	}
	return segments, nil
}

func (p pattern) matches(segments []string) bool {
	last := len(p) - 1
	if len(segments) < len(p) {
		return false
	}
	for i, want := range p[:last] {
		if want != segments[i] && (want != "*" || segments[i] == "") {
			return false
		}
	}
	prefix, open := strings.CutSuffix(p[last], "*")
	if open {
		return strings.HasPrefix(segments[last], prefix)
	}
	return len(segments) == len(p) && segments[last] == p[last]
}

func matchesAny(patterns []pattern, segments []string) bool {
	return slices.ContainsFunc(patterns, func(p pattern) bool { return p.matches(segments) })
}

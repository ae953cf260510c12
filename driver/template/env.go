package template

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/go-envparse"
)

// ParseEnv reads rendered NAME=value lines with the parser that Nomad uses for
// templates with env = true. Its errors give the line and the reason, and quote
// nothing of the data.
func ParseEnv(data []byte) (map[string]string, error) {
	vars, err := envparse.Parse(bytes.NewReader(data))
	if err == nil {
		return vars, nil
	}
	var parse *envparse.ParseError
	if !errors.As(err, &parse) {
		return nil, errors.New("parse environment: the lines are not NAME=value")
	}
	line, reason := parse.Line, ""
	switch {
	case errors.Is(parse.Err, bufio.ErrTooLong):
		line++ // the scanner counts a line when it has read it
		reason = fmt.Sprintf("longer than %d bytes", bufio.MaxScanTokenSize)
	case errors.Is(parse.Err, envparse.ErrMissingSeparator), errors.Is(parse.Err, envparse.ErrEmptyKey),
		strings.HasPrefix(parse.Err.Error(), "key "):
		reason = `not NAME=value, where NAME has letters, digits and _ . / only; for a value of several lines use NAME={{ ... | toJSON }}`
	case errors.Is(parse.Err, envparse.ErrUnmatchedDouble), errors.Is(parse.Err, envparse.ErrUnmatchedSingle):
		reason = "a quotation mark in the value is not closed; use NAME={{ ... | toJSON }}"
	default:
		reason = "the value has a control character or a wrong escape sequence; use NAME={{ ... | toJSON }}"
	}
	return nil, fmt.Errorf("parse environment: line %d: %s", line, reason)
}

// checkWhole returns an error for what the template was given as a value and ParseEnv would change: a "#" begins a
// comment there, quotation marks and backslashes are its own, and a value has one line. White space at the ends is
// none of a value in any case.
func (x *execution) checkWhole(output string) error {
	vars, err := ParseEnv([]byte(output))
	if err != nil {
		return nil // which is said where the variables are wanted
	}
	first, compared := len(output), 0
	for value := range x.hidden {
		value = strings.TrimSpace(value)
		if len(value) < 2 || !strings.ContainsAny(value, "#'\"\\\n\r") {
			continue
		}
		if compared += len(output); compared > maxCompared {
			break
		}
		if at := insideValue(output, value); at >= 0 && !inAny(vars, value) {
			first = min(first, at)
		}
	}
	if first == len(output) {
		return nil
	}
	return fmt.Errorf("parse environment: line %d: the value would not arrive as it is, because of a #, a quotation "+
		"mark, a backslash or a second line in it; use NAME={{ ... | toJSON }}", 1+strings.Count(output[:first], "\n"))
}

// insideValue returns where the text stands behind the "=" of a line, negative where it does not. What begins a line is
// no value: a whole file of variables can be one secret.
func insideValue(output, text string) int {
	for from := 0; ; {
		found := strings.Index(output[from:], text)
		if found < 0 {
			return -1
		}
		at := from + found
		line := strings.TrimSpace(output[strings.LastIndexByte(output[:at], '\n')+1 : at])
		if strings.Contains(line, "=") && line[0] != '#' {
			return at
		}
		from = at + 1
	}
}

func inAny(vars map[string]string, text string) bool {
	for _, value := range vars {
		if strings.Contains(value, text) {
			return true
		}
	}
	return false
}

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

package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/internal/logtext"
)

// A report is what was found, in the order of looking.
type report struct{ findings []finding }

// Values of a finding's status.
const (
	statusOK      = "ok"
	statusWarning = "warning"
	statusProblem = "problem"
)

type finding struct {
	Status  string `json:"status"`
	About   string `json:"about"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"` // empty if there is nothing to do, or the message says it
}

func (r *report) add(status, about, fix, format string, args ...any) {
	line := func(text string) string { return logtext.Line(strings.Join(strings.Fields(text), " ")) }
	r.findings = append(r.findings, finding{status, about, line(fmt.Sprintf(format, args...)), line(fix)})
}

func (r *report) ok(about, format string, args ...any) { r.add(statusOK, about, "", format, args...) }

func (r *report) warn(about, fix, format string, args ...any) {
	r.add(statusWarning, about, fix, format, args...)
}

func (r *report) problem(about, fix, format string, args ...any) {
	r.add(statusProblem, about, fix, format, args...)
}

// driverError is a problem that the driver would have, too, in its words.
func (r *report) driverError(about string, err error) {
	text, hint := splitHint(err)
	r.problem(about, hint, "%s", text)
}

func (r *report) hasProblem() bool {
	return slices.ContainsFunc(r.findings, func(f finding) bool { return f.Status == statusProblem })
}

// splitHint returns what an error says, and what to do about it if that is known.
func splitHint(err error) (text, hint string) {
	var e *vault.Error
	if !errors.As(err, &e) {
		return fmt.Sprint(err), ""
	}
	unhinted := *e
	unhinted.Hint = ""
	return unhinted.Error(), e.Hint
}

func (r *report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"findings": r.findings})
	}
	for _, f := range r.findings {
		line := fmt.Sprintf("%-7s  %s: %s", f.Status, f.About, f.Message)
		if f.Fix != "" {
			line += "; " + f.Fix
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

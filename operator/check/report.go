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
	Fix     string `json:"fix,omitempty"`   // empty if there is nothing to do, or the message says it
	Paste   string `json:"paste,omitempty"` // what Fix says to add, as it is written in a jobspec
}

// add notes a finding, unless it is there already.
func (r *report) add(f finding) {
	line := func(text string) string { return logtext.Line(strings.Join(strings.Fields(text), " ")) }
	f.Message, f.Fix = line(f.Message), line(f.Fix)
	if !slices.Contains(r.findings, f) {
		r.findings = append(r.findings, f)
	}
}

func (r *report) ok(about, format string, args ...any) {
	r.add(finding{Status: statusOK, About: about, Message: fmt.Sprintf(format, args...)})
}

func (r *report) warn(about, fix, format string, args ...any) {
	r.add(finding{Status: statusWarning, About: about, Fix: fix, Message: fmt.Sprintf(format, args...)})
}

func (r *report) problem(about, fix, format string, args ...any) {
	r.add(finding{Status: statusProblem, About: about, Fix: fix, Message: fmt.Sprintf(format, args...)})
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

// print prints what was rendered, and what was found: of what is in order nothing beside something rendered.
func (c *checker) print(w io.Writer) error {
	if c.json {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		all := map[string]any{"findings": c.findings}
		if c.render {
			all["rendered"] = c.rendered
		}
		return e.Encode(all)
	}
	printRendered(w, c.rendered)
	for _, f := range c.findings {
		if c.render && f.Status == statusOK {
			continue
		}
		line := fmt.Sprintf("%-7s  %s: %s", f.Status, f.About, f.Message)
		if f.Fix != "" {
			line += "; " + f.Fix
		}
		if f.Paste != "" {
			line += "\n" + strings.TrimSpace(f.Paste)
			line = strings.ReplaceAll(line, "\n", "\n         ")
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

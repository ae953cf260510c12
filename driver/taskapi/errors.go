package taskapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The classes of what a Reading can fail with; every error of its methods matches one of them with errors.Is, and its
// text says what to do. None holds a token or an item of a variable.
var (
	// ErrDenied: the task's identity may not read it, or there is none. Waiting does not help; a changed policy does.
	ErrDenied = errors.New("denied by Nomad")
	// ErrInvalid: Nomad refuses the question as wrong. Waiting does not help.
	ErrInvalid = errors.New("refused by Nomad")
	// ErrUnavailable: Nomad could not be asked or could not answer. The same question may be answered later.
	ErrUnavailable = errors.New("cannot ask Nomad")
)

// A fault is one failed attempt.
type fault struct {
	class  error
	detail string
	cause  error // of the caller's own, such as that of Options.Token
	final  bool  // to be told at once: waiting will not cure it
}

func (f *fault) Error() string {
	text := f.class.Error() + ": " + f.detail
	if f.cause != nil {
		text += ": " + f.cause.Error()
	}
	return text
}

func (f *fault) Unwrap() []error {
	if f.cause == nil {
		return []error{f.class}
	}
	return []error{f.class, f.cause}
}

var errTooMany = &fault{class: ErrInvalid, final: true,
	detail: fmt.Sprintf("a task may ask Nomad %d different questions: "+
		"ask for fewer services and variables, or keep what belongs together in one variable", maxQuestions)}

var errNoAnswer = &fault{class: ErrUnavailable, detail: "no answer in time"}

func final(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.final
}

// refusal tells what Nomad means by a status that is no answer
// (https://developer.hashicorp.com/nomad/api-docs#http-response-codes).
func refusal(q question, namespace string, status int, said string) *fault {
	switch {
	case status == http.StatusUnauthorized:
		return &fault{class: ErrDenied, final: true, detail: "Nomad's task API wants the task's own token, even where " +
			"ACLs are " +
			"off: add to the task: identity { file = true } or identity { env = true }"}
	case status == http.StatusForbidden && strings.Contains(said, "Permission denied"):
		return &fault{class: ErrDenied, final: true, detail: fmt.Sprintf("Nomad lets a task read the services of its "+
			"namespace, and "+
			"the variables nomad/jobs and nomad/jobs/<job>[/<group>[/<task>]] named after it; for others give its job a policy "+
			"(nomad acl policy apply -namespace <its own> -job <job> ...) with: namespace %q { %s }", namespace, q.grant())}
	case status == http.StatusForbidden:
		return &fault{class: ErrDenied, final: true, detail: fmt.Sprintf("Nomad does not accept the task's identity "+
			"token, which "+
			"may have expired: %s (403)", said)}
	case status >= 300 && status < 500 && status != http.StatusTooManyRequests:
		return &fault{class: ErrInvalid, final: true, detail: fmt.Sprintf("%s (%d)", said, status)}
	default:
		return &fault{class: ErrUnavailable, detail: fmt.Sprintf("%s (%d)", said, status)}
	}
}

// told makes what somebody on the socket said fit for a log line: short, on one line, and without the token, which it
// has.
func told(body []byte, token string) string {
	const most = 200
	text := string(body)
	if token != "" {
		text = strings.ReplaceAll(text, token, "[redacted]")
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = text[:most] + "..."
	}
	return fmt.Sprintf("%q", text)
}

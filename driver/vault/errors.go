package vault

import (
	"context"
	"errors"
	"regexp"
	"strings"
)

// The classes of what can go wrong between us and Vault; every error of a Client or Caller that talks to Vault matches
// one of them with errors.Is, but for ErrTokenGone, ErrLeaseGone and the end of the caller's own context.
var (
	// ErrDenied: the identity or its policies do not allow it. Waiting does not help; a changed role or policy does.
	ErrDenied = errors.New("denied by Vault")
	// ErrNotFound: there is nothing at that path, or that version of it is deleted.
	ErrNotFound = errors.New("not found in Vault")
	// ErrInvalid: Vault understood the request and refuses it as wrong. Waiting does not help.
	ErrInvalid = errors.New("refused by Vault")
	// ErrUnavailable: Vault could not be asked or could not answer. The same request may succeed later.
	//lint:ignore ST1005 Vault is a name
	ErrUnavailable = errors.New("Vault unavailable")
)

var (
	// ErrNotYet is the ErrUnavailable of a login that Vault refuses for a reason which passes. It is no outage of Vault.
	ErrNotYet error = subclass{"refused by Vault for now", ErrUnavailable}
	// errRefused is the ErrInvalid of what is not asked of Vault, or not taken from it.
	errRefused error = subclass{"refused", ErrInvalid}
)

// subclass is a class within another one.
type subclass struct {
	text  string
	class error
}

func (c subclass) Error() string { return c.text }
func (c subclass) Unwrap() error { return c.class }

// Error is an answer or a silence of Vault, told on one line for the person who has to mend it. It never holds a
// secret: Vault's own messages are cleared of what looks like one, and requests are not quoted.
type Error struct {
	Class  error  // matches ErrDenied, ErrNotFound, ErrInvalid or ErrUnavailable
	Op     string // what was tried: "log in with role \"api\"", "read kv/data/app"
	Detail string // what Vault or the network said
	Hint   string // what to do about it
	Final  bool   // waiting cannot help although the class is ErrUnavailable: a certificate that is not trusted

	status int  // of the HTTP answer, 0: there was none
	absent bool // of an ErrNotFound: somebody can write there what is missing, the path is none that could not be
	lost   bool // Vault may have done what was asked: the request went out and no answer came back

	timeout bool // no answer came in time
}

func (e *Error) Error() string {
	text := e.Op + ": " + e.Class.Error()
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

func (e *Error) Unwrap() error { return e.Class }

// Transient reports whether the same request may succeed without anybody changing anything.
func Transient(err error) bool {
	var e *Error
	if errors.As(err, &e) && e.Final {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// Unreachable reports that Vault could not be asked, whatever it takes to mend that: the error says nothing of the
// token or lease in question.
func Unreachable(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// AnswerLost reports whether Vault may have done what was asked although err came back.
func AnswerLost(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.lost
}

// MarkNothingIssued has AnswerLost return false for err, the error of a request that may be repeated although its
// answer was lost.
func MarkNothingIssued(err error) error {
	var e *Error
	if errors.As(err, &e) {
		e.lost = false
	}
	return err
}

// TimedOut reports that no answer came in time.
func TimedOut(err error) bool {
	var e *Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.timeout
}

// UnknownToken reports a denial by a Vault that does not know the token. One before 1.15 does not say so.
func UnknownToken(denial error) bool {
	var e *Error
	return errors.As(denial, &e) && strings.Contains(e.Detail, "invalid token")
}

// HintDenied adds to a denial what to do about it. Other errors stay as they are.
func HintDenied(err error, hint string) error {
	var e *Error
	if errors.As(err, &e) && e.Class == ErrDenied {
		e.Hint = hint
	}
	return err
}

// credential is what Vault tokens and JWTs look like.
var credential = regexp.MustCompile(`\bhv[sbr]\.[\w-]{8,}|\beyJ[\w-]{8,}\.[\w-]+(\.[\w-]*)?`)

// quiet makes one bounded line without credentials of what another program said: a proxy before Vault may answer with a
// page that shows the request.
func quiet(text string) string {
	const most = 300
	text = credential.ReplaceAllString(strings.Join(strings.Fields(text), " "), "[redacted]")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

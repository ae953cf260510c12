package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"github.com/hashicorp/vault/api"
)

// The classes of what can go wrong between us and Vault; every error of a Client or Caller that talks to Vault matches one of
// them with errors.Is, but for ErrTokenGone, ErrLeaseGone and the end of the caller's own context.
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

// Error is an answer or a silence of Vault, told on one line for the person who has to mend it. It never holds a secret:
// Vault's own messages are cleared of what looks like one, and requests are not quoted.
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

// Unreachable reports that Vault could not be asked, whatever it takes to mend that: the error says nothing of the token or lease in question.
func Unreachable(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// AnswerLost reports whether Vault may have done what was asked although err came back.
func AnswerLost(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.lost
}

// MarkNothingIssued has AnswerLost return false for err, the error of a request that may be repeated although its answer was lost.
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

// fail classifies err, which may be nil, as the outcome of op.
func (c *Client) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, context.Canceled)
	}
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		return c.unreached(op, err)
	}
	e := &Error{Class: classOf(answer.StatusCode), Op: op, Detail: message(answer), status: answer.StatusCode}
	switch {
	case answer.StatusCode == http.StatusBadGateway, answer.StatusCode == http.StatusGatewayTimeout:
		e.lost = true // says a proxy, which may have passed the request on
	case strings.Contains(e.Detail, "past the max TTL"): // with status 500, but there is no waiting for it
		e.Class = ErrInvalid
	case strings.Contains(e.Detail, "HTTP request to an HTTPS server"):
		e.Class, e.Final = ErrUnavailable, true
		e.Hint = fmt.Sprintf("address in %s says http, the server speaks https", c.cluster.Block())
	}
	return e
}

// Block is where the operator finds the cluster's settings, as messages name it.
func (c Cluster) Block() string { return fmt.Sprintf("the plugin's vault %q block", c.Name) }

// classOf reads Vault's HTTP status codes (https://developer.hashicorp.com/vault/api-docs#http-status-codes).
func classOf(status int) error {
	switch {
	case status == http.StatusForbidden:
		return ErrDenied
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusPreconditionFailed, status == http.StatusTooManyRequests,
		status == http.StatusRequestTimeout, status >= 470:
		return ErrUnavailable
	default:
		return ErrInvalid
	}
}

// message is what Vault said. Its lists of errors become one line.
func message(e *api.ResponseError) string {
	var said []string
	for _, s := range e.Errors {
		for line := range strings.Lines(s) {
			if line = strings.Trim(line, "\t\r\n *"); line != "" && !strings.HasSuffix(line, "error occurred:") &&
				!strings.HasSuffix(line, "errors occurred:") {
				said = append(said, line)
			}
		}
	}
	text := quiet(strings.Join(said, "; "))
	if text == "" {
		text = http.StatusText(e.StatusCode)
	}
	return fmt.Sprintf("%s (%d)", text, e.StatusCode)
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

// unreached tells a failure to get an answer at all, and tells apart what waiting cannot cure.
func (c *Client) unreached(op string, err error) error {
	e := &Error{Class: ErrUnavailable, Op: op, Detail: bare(err), Final: true}
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var bound *http.MaxBytesError
	switch {
	case errors.As(err, &bound):
		e.Class, e.Final = errRefused, false
		e.Detail = fmt.Sprintf("the answer is larger than %d MiB", bound.Limit>>20)
		e.Hint = "split what is there, or ask for less of it"
	case errors.Is(err, errElsewhere):
		e.Final = false
		e.Hint = fmt.Sprintf("address in %s is %s, and a redirect is followed to that host or to the leader_address of its sys/leader: correct api_addr there",
			c.cluster.Block(), c.cluster.Address)
	case errors.As(err, &authority):
		e.Hint = fmt.Sprintf("set ca_file or ca_path in %s to the CA of %s", c.cluster.Block(), c.cluster.Address)
	case errors.As(err, &hostname):
		e.Hint = fmt.Sprintf("set tls_server_name or correct address in %s", c.cluster.Block())
	case errors.As(err, &invalid):
		e.Hint = fmt.Sprintf("renew the certificate of %s, or correct this machine's clock", c.cluster.Address)
	case errors.As(err, &record), strings.Contains(e.Detail, "HTTP response to HTTPS client"):
		e.Hint = fmt.Sprintf("address in %s says https, the server speaks http", c.cluster.Block())
	case ofOurs.MatchString(e.Detail):
		e.Hint = fmt.Sprintf("set cert_file and key_file in %s to a certificate that %s accepts", c.cluster.Block(), c.cluster.Address)
	case errors.Is(err, errThrottled):
		e.Final, e.Hint = false, fmt.Sprintf("raise rate_limit in %s", c.cluster.Block())
	default:
		e.Final, e.lost, e.timeout = false, !unsent(err), errors.Is(err, context.DeadlineExceeded)
		e.Hint = fmt.Sprintf("address in %s is %s", c.cluster.Block(), c.cluster.Address)
		plain := strings.HasPrefix(c.cluster.Address, "http:")
		if errors.Is(err, syscall.ECONNRESET) && plain {
			e.Hint += ": does the server speak https?"
		}
		// Such a server hangs up after the handshake, which who has begun to write may notice first.
		hungUp := strings.Contains(e.Detail, "http2: client conn could not be established") || errors.Is(err, syscall.EPIPE) && !plain
		if hungUp && c.cluster.CertFile == "" {
			e.Hint += ": does the server want a certificate? then set cert_file and key_file there"
		}
	}
	return e
}

// ofOurs is what a server says of a client's certificate (RFC 8446 §6.2), in the words of crypto/tls, which has no type for it.
var ofOurs = regexp.MustCompile(`remote error: tls: (.*certificate|unknown certificate authority)`)

// unsent reports that there was not even a connection.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// bare strips what net/http and net wrap around the cause, which our own words already say.
func bare(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil && op.Addr != nil {
		return quiet(fmt.Sprintf("%s %s: %v", op.Op, op.Addr, op.Err))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return quiet(err.Error())
}

// Said is what Vault or the network answered, on one line and without credentials.
func Said(err error) string {
	var answer *api.ResponseError
	if errors.As(err, &answer) {
		return message(answer)
	}
	return bare(err)
}

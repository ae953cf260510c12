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
		e.Hint = fmt.Sprintf("address in %s is %s, and a redirect is followed to that host "+
			"or to the leader_address of its sys/leader: correct api_addr there",
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
		e.Hint = fmt.Sprintf("set cert_file and key_file in %s to a certificate that %s accepts",
			c.cluster.Block(), c.cluster.Address)
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
		hungUp := strings.Contains(e.Detail, "http2: client conn could not be established") ||
			errors.Is(err, syscall.EPIPE) && !plain
		if hungUp && c.cluster.CertFile == "" {
			e.Hint += ": does the server want a certificate? then set cert_file and key_file there"
		}
	}
	return e
}

// ofOurs is what a server says of a client's certificate (RFC 8446 §6.2), in the words of crypto/tls, which has no type
// for it.
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

package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// errElsewhere is why a redirect is not followed.
var errElsewhere = errors.New("it redirects")

// checkRedirect returns an error for an answer that sends the request, and the token with it, out of the cluster: the
// Vault API's library follows one redirect to any host. A standby node that does not forward requests redirects to the
// active node's api_addr (https://developer.hashicorp.com/vault/docs/concepts/ha#client-redirection), which is what the
// cluster's own address tells as its leader. A load balancer may redirect from http to https. The path stays the same
// in either case.
func (t transport) checkRedirect(r *http.Request, answer *http.Response) error {
	to, err := answer.Location()
	if err != nil || answer.StatusCode < 300 || answer.StatusCode > 399 {
		return nil
	}
	base := strings.TrimSuffix(t.address.Path, "/")
	switch {
	case r.URL.Host != t.address.Host:
		return fmt.Errorf("%w to %s, which redirects again", errElsewhere, r.URL.Host)
	case to.Path != r.URL.Path && base+to.Path != r.URL.Path:
		return fmt.Errorf("%w to another path", errElsewhere)
	case to.Scheme != "https" && (to.Scheme != "http" || t.address.Scheme != "http"):
		return fmt.Errorf("%w from %s to %s", errElsewhere, t.address.Scheme, to.Scheme)
	case to.Host == t.address.Host:
		return nil
	}
	leader, err := t.leader(r.Context())
	switch {
	case err != nil:
		return fmt.Errorf("%w to %s, and does not say whether that is its leader: %w", errElsewhere, to.Host, err)
	case to.Scheme != leader.Scheme || to.Host != leader.Host:
		return fmt.Errorf("%w to %s, but its leader is %s", errElsewhere, to.Host, leader.Host)
	}
	return nil
}

// leader asks the configured address where the active node is, which takes no token
// (https://developer.hashicorp.com/vault/api-docs/system/leader).
func (t transport) leader(ctx context.Context) (*url.URL, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.address.JoinPath("v1/sys/leader").String(), nil)
	if err != nil {
		return nil, err
	}
	if err := t.limit.Wait(ctx); err != nil {
		return nil, errThrottled
	}
	answer, err := t.send(r, FirstTimeout)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var told struct {
		Leader string `json:"leader_address"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 64<<10)).Decode(&told); err != nil || told.Leader == "" {
		return nil, errors.New("sys/leader has no leader_address")
	}
	return url.Parse(told.Leader)
}

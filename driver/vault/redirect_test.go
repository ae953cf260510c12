package vault_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// standby is a node of a Vault cluster that does not forward requests.
type standby struct {
	leader   string                    // what its sys/leader tells
	redirect func(url *url.URL) string // where it sends a request
}

func (s standby) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/sys/leader" {
		fmt.Fprintf(w, `{"ha_enabled":true,"is_self":false,"leader_address":%q}`, s.leader)
		return
	}
	w.Header().Set("Location", s.redirect(r.URL))
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// reach logs in over a node, reads, and revokes its token.
func reach(t *testing.T, server *vaulttest.Server, address string) error {
	client, err := vault.NewClient(vault.Cluster{Name: "default", Address: address, AuthPath: "jwt-nomad",
		TLSSkipVerify: true}, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(client.Close)
	auth, err := client.Login(t.Context(), "app", "", server.JWT)
	if err != nil {
		return err
	}
	caller := client.As(auth, "app", "")
	_, err = caller.Ask(t.Context(), vault.Request{Op: vault.Read, Path: "secret/a"})
	must.NoError(t, caller.RevokeSelf(t.Context()))
	return err
}

func TestRedirectIsFollowedOnlyWithinTheCluster(t *testing.T) {
	for name, test := range map[string]struct {
		tls      bool                                          // of the standby node
		nobody   bool                                          // is told as leader
		redirect func(u *url.URL, active, other string) string // where to
		says     string                                        // empty: it is followed
	}{
		"to the leader": {redirect: func(u *url.URL, active, _ string) string { return active + u.RequestURI() }},
		"to another host": {redirect: func(u *url.URL, _, other string) string { return other + u.RequestURI() },
			says: "it redirects to OTHER, but its leader is ACTIVE"},
		"to another host, and nobody knows of a leader": {redirect: func(u *url.URL, _,
			other string) string {
			return other + u.RequestURI()
		},
			nobody: true, says: "sys/leader has no leader_address"},
		"to another path of the leader": {redirect: func(_ *url.URL, active,
			_ string) string {
			return active + "/v1/cubbyhole/m"
		},
			says: "it redirects to another path"},
		"out of Vault's API": {redirect: func(_ *url.URL, active, _ string) string { return active + "/ui/" },
			says: "it redirects to another path"},
		"from https to http": {tls: true, redirect: func(u *url.URL, active,
			_ string) string {
			return active + u.RequestURI()
		},
			says: "it redirects from https to http"},
		"to what is not HTTP": {redirect: func(u *url.URL, _, _ string) string { return "ftp://x" + u.RequestURI() },
			says: "it redirects from http to ftp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := vaulttest.New(t)
			server.Put("secret/a", map[string]any{"k": "1"})
			active := httptest.NewServer(server)
			t.Cleanup(active.Close)
			var foreign atomic.Int32
			other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { foreign.Add(1) }))
			t.Cleanup(other.Close)
			node := standby{leader: active.URL, redirect: func(u *url.URL) string {
				return test.redirect(u, active.URL,
					other.URL)
			}}
			if test.nobody {
				node.leader = ""
			}
			first := httptest.NewUnstartedServer(node)
			if first.Start(); test.tls {
				first.Close()
				first = httptest.NewTLSServer(node)
			}
			t.Cleanup(first.Close)

			err := reach(t, server, first.URL)
			must.Eq(t, int32(0), foreign.Load())
			if test.says == "" {
				must.NoError(t, err)
				must.Eq(t, 1, server.Logins())
				return
			}
			names := strings.NewReplacer("OTHER", other.Listener.Addr().String(), "ACTIVE", active.Listener.Addr().String())
			must.ErrorIs(t, err, vault.ErrUnavailable)
			must.ErrorContains(t, err, names.Replace(test.says))
			must.ErrorContains(t, err, "correct api_addr there")
			must.Eq(t, 0, server.Calls(""))
		})
	}
}

// A few kilobytes of gzip become gigabytes.
func TestAnswerIsBoundedAsItIsUnpacked(t *testing.T) {
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, _ = zip.Write([]byte(`{"data":{"data":{"k":"`))
	for range 17 << 10 {
		_, _ = zip.Write(bytes.Repeat([]byte("x"), 1<<10))
	}
	_, _ = zip.Write([]byte(`"},"metadata":{}}}`))
	must.NoError(t, zip.Close())
	must.Less(t, 64<<10, packed.Len())

	server := vaulttest.New(t)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/secret/data/a") {
			server.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed.Bytes())
	}))
	t.Cleanup(proxy.Close)
	err := reach(t, server, proxy.URL)
	must.ErrorIs(t, err, vault.ErrInvalid)
	must.ErrorContains(t, err,
		"read secret/data/a: refused: the answer is larger than 16 MiB; split what is there, or ask for less of it")
}

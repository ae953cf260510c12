//go:build !race

package session_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// Ten times what anybody has, beside a neighbour that must not notice. The race detector would make minutes of it: make
// unit runs this without.

// dropsAfter is how long it takes to give up a connection of which nothing is heard.
const dropsAfter = 5 * time.Second

// dropping makes a client of a cluster to which nothing gets any more once dropped is closed.
func dropping(t *testing.T, server *vaulttest.Server, dropped <-chan struct{}) *session.Cluster {
	cluster := server.Cluster()
	dial := cluster.Dial
	cluster.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case <-dropped:
			time.Sleep(dropsAfter)
			return nil, os.ErrDeadlineExceeded
		default:
			return dial(ctx, network, address)
		}
	}
	client, err := session.NewCluster(cluster, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func TestHungClusterDelaysNoOther(t *testing.T) {
	const beside = 20
	for _, tasks := range []int{16, 1000} {
		t.Run(fmt.Sprint(tasks), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hung, well := vaulttest.New(t), vaulttest.New(t)
				for _, server := range []*vaulttest.Server{hung, well} {
					server.SetRole("app", vaulttest.Role{TTL: 30 * time.Minute})
					server.Creds["app"] = vaulttest.Creds{TTL: 10 * time.Minute}
				}
				dropped := make(chan struct{}) // closed when packets to the cluster are dropped
				client := dropping(t, hung, dropped)
				for range tasks {
					use(t, client, session.Options{Login: loginAt(hung, "app")}, creds)
				}
				for n, client := 0, another(t, "well", well); n < beside; n++ {
					use(t, client, session.Options{Login: loginAt(well, "app")}, creds)
				}
				hung.Break(vaulttest.Fault{Hang: true})
				close(dropped)
				time.Sleep(3 * time.Hour)
				must.MapEmpty(t, well.Neglected(), must.Sprint("a lease in use ended unrenewed"))
				must.Eq(t, beside, well.Logins(), must.Sprint("a token was lost"))
				must.Eq(t, beside, well.Minted())
				client.Close()
				time.Sleep(dropsAfter)
			})
		})
	}
}

func TestHungEngineDelaysNoOther(t *testing.T) {
	const beside, lasts, every = 20, 3 * time.Hour, 30 * time.Second
	for _, tasks := range []int{16, 1000} {
		t.Run(fmt.Sprint(tasks), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := vaulttest.New(t)
				server.SetRole("app", vaulttest.Role{TTL: 30 * time.Minute})
				server.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
				server.Put("secret/a", map[string]any{"k": "v"})
				client := another(t, "default", server)
				for range tasks {
					use(t, client, session.Options{Login: loginAt(server, "app")}, creds)
				}
				for range beside {
					use(t, client, session.Options{Login: loginAt(server, "app")}, read("secret/a"))
				}
				server.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Hang: true})
				server.Break(vaulttest.Fault{Match: "GET database/", Hang: true})
				logins, polls := server.Logins(), server.Calls("GET secret/data/a")
				time.Sleep(lasts)
				must.Eq(t, logins, server.Logins(), must.Sprint("a token was lost"))
				must.GreaterEq(t, beside*int(lasts/every)*95/100, server.Calls("GET secret/data/a")-polls)
			})
		})
	}
}

// Sixteen sessions that ask as much as they may do not keep a neighbour from renewing a token in its six seconds.
func TestManyQuestionsDelayNoOther(t *testing.T) {
	bubble(t, func(b *bench) {
		b.SetRole("short", vaulttest.Role{TTL: 6 * time.Second})
		var reqs []vault.Request
		for i := range 1500 {
			path := fmt.Sprintf("secret/many/%d", i)
			b.Put(path, map[string]any{"k": "v"})
			reqs = append(reqs, vault.Request{Op: vault.Read, Path: path, Every: 10 * time.Second})
		}
		for range 16 {
			use(b.T, b.client, b.options(), reqs...)
		}
		var replaced atomic.Int32
		use(b.T, b.client, session.Options{Login: loginAt(b.Server, "short"), Notify: func(n session.Notice) {
			if n.Kind == session.Replaced {
				replaced.Add(1)
			}
		}})
		b.Break(vaulttest.Fault{Match: "GET secret/", Slow: 900 * time.Millisecond})
		renewals := b.Calls("PUT auth/token/renew-self")
		time.Sleep(time.Minute)
		must.Eq(b, 0, replaced.Load())
		must.Greater(b, renewals+60/6, b.Calls("PUT auth/token/renew-self"))
	})
}

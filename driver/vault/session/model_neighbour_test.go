package session_test

import (
	"context"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// neighbour is a task of the same plugin with another Vault, which has no trouble. Whatever becomes of the model's task
// and of its Vault, the neighbour keeps its token and its database user.
type neighbour struct {
	*vaulttest.Server
	client *session.Cluster
	s      *session.Session
	user   string
}

// neighbourTTL is the life of what the neighbour has: longer than a plugin is away, in whatever moment that dies.
const neighbourTTL = 4 * time.Hour

func (n *neighbour) cluster() vault.Cluster {
	c := n.Cluster()
	c.Name, c.Address = "west", "http://127.0.0.1:8201"
	return c
}

// setUp starts the neighbour and its Vault.
func (n *neighbour) setUp(m *model) {
	n.Server = vaulttest.New(m.T)
	n.SetRole("app", vaulttest.Role{TTL: neighbourTTL, Revoke: true})
	n.Creds["app"] = vaulttest.Creds{TTL: neighbourTTL}
	n.start(m)
	var err error
	n.s, err = n.client.Open(m.Context(), session.Options{Login: loginAt(n.Server, "app")})
	must.NoError(m, err)
	r := n.s.Begin(false)
	secret, err := r.Read(m.Context(), creds)
	must.NoError(m, err)
	r.Commit(0)
	n.user, _ = secret.Data["username"].(string)
}

func (n *neighbour) start(m *model) {
	var err error
	n.client, err = session.NewCluster(n.cluster(), hclog.NewNullLogger())
	must.NoError(m, err)
	n.client.Jitter(m.nextJitter)
	m.Cleanup(n.client.Close)
}

// crash ends the plugin, as it does for the model's task. The next one adopts what it returns.
func (n *neighbour) crash(m *model, step time.Duration) (state []byte) {
	state = shifted(m.T, m.save(n.s), -step)
	n.client.Close()
	return state
}

func (n *neighbour) adopt(m *model, state []byte) {
	n.start(m)
	var err error
	n.s, err = n.client.Adopt(state, session.Options{Login: loginAt(n.Server, "app")})
	must.NoError(m, err)
}

// check looks whether the neighbour noticed anything.
func (n *neighbour) check(m *model) {
	must.Eq(m, []string{n.user}, n.Users(), must.Sprint("the neighbour's user"))
	must.Eq(m, 1, n.Calls("PUT auth/jwt-nomad/login"), must.Sprint("logins of the neighbour"))
}

func (n *neighbour) end(m *model) {
	must.NoError(m, n.s.Close(context.Background()))
	must.SliceEmpty(m, n.Users())
	must.SliceEmpty(m, n.Tokens())
}

// mistakes is an operator who has the plugin come back with the address or the name of another cluster, and mends that.
// The token is shown to nobody meanwhile.
func (m *model) mistakes(state []byte) {
	moved := m.Cluster()
	moved.Address, moved.Dial = m.west.cluster().Address, m.west.cluster().Dial
	misspelt := m.Cluster()
	misspelt.Name = "defualt"
	for _, cluster := range []vault.Cluster{moved, misspelt} {
		asked := m.Calls("") + m.west.Calls("")
		client, err := session.NewCluster(cluster, hclog.NewNullLogger())
		must.NoError(m, err)
		_, err = client.Adopt(state, m.options())
		must.ErrorContains(m, err, "adopt session")
		synctest.Wait()
		client.Close()
		must.Eq(m, asked, m.Calls("")+m.west.Calls(""),
			must.Sprint("a saved session was shown to a Vault that is not its own"))
	}
	m.tell("the operator has mended another cluster's address and name")
}

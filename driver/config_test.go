package driver

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// The agent configures a plugin more than once, and a second client would renew the cluster's own token beside the
// first.
func TestClusterWithATokenOfItsOwnIsLookedAfterOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(t.Context(), hclog.NewNullLogger(), "vault-fake", nil)
		c := config.Operator{StateDir: "/none", StartTimeout: time.Second, PollInterval: time.Second,
			MinPollInterval: time.Second,
			Clusters: []vault.Cluster{
				{Name: "own", Address: "http://127.0.0.1:1", Role: "nomad-cluster", TokenFile: "/none"}}}
		must.NoError(t, d.Configure(c))
		first, err := d.client("own")
		must.NoError(t, err)
		must.NoError(t, d.Configure(c))
		same, err := d.client("own")
		must.NoError(t, err)
		must.True(t, first == same)
		c.Clusters = []vault.Cluster{{Name: "own", Address: "http://127.0.0.1:1", Role: "another", TokenFile: "/none"}}
		must.NoError(t, d.Configure(c))
		other, err := d.client("own")
		must.NoError(t, err)
		must.False(t, first == other)
	})
}

// A second client has connections and a rate limit of its own.
func TestClusterThatIsConfiguredAsBeforeKeepsItsClient(t *testing.T) {
	bubble(t, func(h *host) {
		h.west()
		before := maps.Clone(h.clients)
		h.config.Clusters = slices.Clone(h.config.Clusters)
		must.NoError(t, h.Configure(h.config))
		must.True(t, maps.Equal(before, h.clients))
		h.config.Clusters[1].RateLimit = "50"
		must.NoError(t, h.Configure(h.config))
		must.True(t, before["default"] == h.clients["default"])
		must.False(t, before["west"] == h.clients["west"])
	})
}

// The detector of data races finds what this is for.
func TestClusterIsConfiguredWhileItsOwnTokenChanges(t *testing.T) {
	bubble(t, func(h *host) {
		h.issuing()
		h.Break(vaulttest.Fault{Slow: 300 * time.Millisecond}) // so that it is configured while Vault is asked, too
		file := filepath.Join(t.TempDir(), "token")
		h.config.Clusters[0].Token, h.config.Clusters[0].TokenFile = "", file
		for i := range 50 {
			token := "none"
			if i%2 == 0 {
				token = h.MakeOwn(time.Hour)
			}
			must.NoError(t, os.WriteFile(file, []byte(token), 0o600))
			for range 100 {
				must.NoError(t, h.Configure(h.config))
				time.Sleep(5 * time.Second / 100)
			}
		}
		status, _ := h.Clusters()
		must.StrNotContains(t, status["default"], "ready")
	})
}

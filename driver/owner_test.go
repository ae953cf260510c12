package driver

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
)

// TestFilesBelongToTheUserOfTheImage is about a user whom the wrapped driver learns from the image, when the files of
// the first generation are there.
func TestFilesBelongToTheUserOfTheImage(t *testing.T) {
	need.Root(t)
	bubble(t, func(h *host) {
		h.config.ImageUser = true
		h.reboot()
		h.inner.user = []int{1000, 1001, 7}
		h.write("green")
		cfg := h.job("vault {\n role = \"app\"\n file = true\n}\n" + secretHCL("db", onSignal) +
			templateHCL("secrets/roots", "x", `perms = "0600"`) +
			templateHCL("local/groups", "x", "perms = \"0640\"\n gid = 7") + templateHCL("local/all", "x", ""))
		cfg.User = "of-the-image" // unknown to this host
		handle, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		r := &run{h, cfg, handle}
		must.SliceContains(t, h.events(),
			"the container's user 1000 cannot read secrets/roots: set uid = 1000 there, or other perms")
		owned := func() {
			t.Helper()
			for _, file := range []string{"secrets/db", "secrets/vault_token"} {
				uid, gid := h.ownerOf(file)
				must.Eq(t, [2]uint32{1000, 1001}, [2]uint32{uid, gid}, must.Sprint(file))
			}
			uid, _ := h.ownerOf("secrets/roots")
			must.Zero(t, uid, must.Sprint("a template's is root's, as in Nomad"))
		}
		owned()

		h.write("blue")
		after(noticed)
		must.Eq(t, "{\"k\":\"blue\"}\n", h.file("secrets/db"))
		owned()
		h.reboot()
		r.recovered()
		h.write("red")
		after(noticed)
		must.Eq(t, "{\"k\":\"red\"}\n", h.file("secrets/db"))
		owned()
		r.stop()
		after(time.Hour)
		h.nothingLeft()
	})
}

package driver

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// startWithSecrets is a task that has a secret of every kind in its hands.
func startWithSecrets(h *host) *run {
	h.write(vaulttest.Planted)
	return h.start("vault {\n role = \"app\"\n env = true\n file = true\n}\n" +
		templateHCL("secrets/env", "PASS="+strings.ReplaceAll(creds, "username", "password"), "env = true") +
		templateHCL("local/k", kv, "") + templateHCL("local/once", kv, "once = true") +
		templateHCL("local/w", `{{ with secret "pki/issue/app" "password=`+vaulttest.Planted+`" }}{{ .Data.certificate }}{{ end }}`, ""))
}

// Whatever a line of the log, an error or a panic is made of: no type that holds a secret prints it.
func TestNothingThatHoldsASecretPrintsIt(t *testing.T) {
	bubble(t, func(h *host) {
		r := startWithSecrets(h)
		tk, _ := h.task(r.cfg.ID)
		must.StrContains(t, string(tk.current.Output["secrets/env"]), vaulttest.Planted)
		kept := tk.record
		tk.credentials.Save(&kept)
		must.StrContains(t, string(kept.Sessions["default"].State), vaulttest.Planted)
		session := tk.credentials.Session("default")
		login := jwt("one")
		all := []any{tk, *tk.current, tk.current, kept, &kept, kept.Sessions, tk.parkedRun(), rendered{next: tk.current},
			tk.current.Files, tk.current.Files[0], tk.current.Snapshot, tk.credentials, tk.renderer,
			session, session.Begin(false),
			vault.Request{Op: vault.Write, Path: "x", Data: map[string]any{"password": vaulttest.Planted}},
			h.Driver.tasks, h.parking.parked}
		for _, one := range all {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				text := fmt.Sprintf(verb, one)
				for _, never := range []string{vaulttest.Planted, fmt.Sprintf("%x", vaulttest.Planted),
					strings.Trim(fmt.Sprint([]byte(vaulttest.Planted)), "[]"), login} {
					must.StrNotContains(t, text, never, must.Sprintf("%s of %T", verb, one))
				}
			}
		}
	})
}

// A panic in the middle of rendering ends the task, and says where it was without a secret.
func TestPanicWhileRenderingShowsNoSecret(t *testing.T) {
	bubble(t, func(h *host) {
		r := startWithSecrets(h)
		ended := r.wait()
		tk, _ := h.task(r.cfg.ID)
		tk.renderer.Funcs[1] = nil
		h.write(vaulttest.Planted + "2")
		must.ErrorContains(t, (<-ended).Err, "internal error in ")
		must.Eq(t, 1, h.logged("nil pointer dereference"))
		must.Positive(t, h.logged("(*Renderer).execute"))
		must.Eq(t, 0, h.logged(vaulttest.Planted))
	})
}

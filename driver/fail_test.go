package driver

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/state"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// The column "while it runs" of the table of failures (docs/changes-and-failures.md). start_test.go has the other one.

func TestRunningTaskKeepsItsTokenWhileItsIdentityIsNoGood(t *testing.T) {
	for how, jwt := range map[string]string{"absent": "", "malformed": "x.y", "expired": expired} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
				r := h.start(asApp + templateHCL("secrets/db", creds, ""))
				token, good := only(t, h.Tokens()), h.JWT
				h.identity(jwt)
				if jwt == "" {
					must.NoError(t, os.Remove(filepath.Join(h.alloc, "web/secrets/nomad_vault.jwt")))
				}
				after(5 * time.Hour)
				must.Eq(t, token, only(t, h.Tokens()))
				must.SliceEmpty(t, h.events())

				h.RevokeTokens()
				after(2 * time.Hour)
				must.SliceEmpty(t, r.did(), must.Sprint("the process goes on with what it has"))
				events := h.events()
				must.Between(t, 1, len(events), 2)
				must.StrContains(t, events[0], `identity "vault"`)

				h.identity(good)
				after(2 * time.Minute)
				must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
				must.Eq(t, only(t, h.Users()), h.file("secrets/db"))
				must.Eq(t, 2, h.Logins())
			})
		})
	}
}

// Whatever Vault refuses, what is there stays, one event says so, and it is tried again slowly.
func TestRunningTaskKeepsWhatItHasWhenVaultRefuses(t *testing.T) {
	for how, test := range map[string]struct {
		refuse func(*host) (mend func())
		says   string
	}{
		"denied": {func(h *host) func() {
			return h.Break(vaulttest.Fault{Match: "GET secret/data/web", Status: 403})
		}, "Vault: read secret/data/web: denied by Vault"},
		"not found": {func(h *host) func() {
			h.Delete("secret/web", false)
			return func() { h.write("green") }
		}, "Vault: read secret/data/web: not found in Vault: version 1 was deleted"},
		"refused": {func(h *host) func() {
			return h.Break(vaulttest.Fault{Match: "GET secret/data/web", Status: 400})
		}, "Vault: read secret/data/web: refused by Vault"},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(severalTemplates(""))
				mend := test.refuse(h)
				calls := h.Calls("GET secret/data/web")
				after(3 * time.Hour)
				must.SliceEmpty(t, r.did())
				must.Eq(t, "green", h.file("local/0"))
				must.StrContains(t, only(t, h.events()), test.says)
				must.Between(t, 100, h.Calls("GET secret/data/web")-calls, 600) // a minute apart, less the jitter
				mend()
				h.write("blue")
				after(2 * time.Minute)
				must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
				must.Eq(t, "blue", h.file("local/0"))
			})
		})
	}
}

func TestRunningTaskSitsOutAnOutage(t *testing.T) {
	for how, fault := range map[string]vaulttest.Fault{
		"down": {}, "hung": {Hang: true}, "sealed": {Status: 503}, "overloaded": {Status: 429}, "standby": {Status: 473},
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(whole + templateHCL("local/color", kv, onSignal))
				user := only(t, h.Users())
				began := h.Calls("")
				mend := func() { h.Down(false) }
				if h.Down(fault == vaulttest.Fault{}); how != "down" {
					mend = h.Break(fault)
				}
				after(30 * time.Minute)
				must.SliceEmpty(t, r.did())
				must.Eq(t, "green", h.file("local/color"))
				must.StrHasPrefix(t, "Vault unavailable: the last known good secrets stay in use: ", only(t, h.events()))
				must.Less(t, 400, h.Calls("")-began)
				mend()
				h.write("blue")
				after(2 * time.Minute)
				must.Eq(t, []string{"signal SIGHUP"}, r.did())
				events := h.events()
				must.Len(t, 2, events)
				must.StrHasPrefix(t, "Vault answers again after ", sorted(events)[1])
				must.Eq(t, user, only(t, h.Users()))
			})
		})
	}
}

func TestLeaseWhoseRenewalFailsIsKeptAndReplacedInTime(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour, Revoke: true})
		r := h.start(asApp + templateHCL("secrets/db", creds, ""))
		user := only(t, h.Users())
		h.Break(vaulttest.Fault{Match: "PUT sys/leases/renew", Status: 500})
		after(49 * time.Minute)
		must.Eq(t, user, only(t, h.Users()), must.Sprint("it is valid for another eleven minutes"))
		must.SliceEmpty(t, r.did())
		after(6 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.NotEq(t, user, only(t, h.Users()))
		after(4 * time.Hour)
		must.Between(t, 5, h.Minted(), 8)
	})
}

func TestLeaseThatIsGoneIsReplacedAtOnce(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + templateHCL("secrets/db", creds, onSignal))
		h.RevokeLeases()
		after(42 * time.Minute) // its next renewal
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, only(t, h.Users()), h.file("secrets/db"))
		must.Eq(t, 2, h.Minted())
	})
}

func TestTokenThatIsGoneBecomesOneGenerationAndOneAction(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		h.Creds["second"] = vaulttest.Creds{TTL: time.Hour}
		r := h.start("vault {\n role = \"app\"\n file = true\n}\n" + templateHCL("secrets/one", creds, onSignal) +
			templateHCL("secrets/two", strings.ReplaceAll(creds, "app", "second"), "") + templateHCL("local/color", kv, onNoop))
		h.RevokeTokens()
		after(42 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Len(t, 1, h.events())
		must.Eq(t, 2, h.Logins())
		must.Eq(t, 4, h.Minted())
		must.Eq(t, only(t, h.Tokens()), h.file("secrets/vault_token"))
		must.SliceContainsAll(t, h.Users(), []string{h.file("secrets/one"), h.file("secrets/two")})
		after(4 * time.Hour)
		must.SliceEmpty(t, r.did())
	})
}

func TestTemplateThatFailsLeavesTheOldFiles(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("1")
		data := `{{ with secret "secret/data/web" }}{{ .Data.data.k | parseInt }}{{ end }}`
		r := h.start(asApp + templateHCL("local/n", data, onSignal) + templateHCL("local/color", kv, onSignal))
		h.write(vaulttest.Planted)
		after(3 * time.Hour)
		must.SliceEmpty(t, r.did())
		must.Eq(t, "1", h.file("local/n"))
		must.Eq(t, "1", h.file("local/color"), must.Sprint("nothing is ever half of a generation"))
		event := only(t, h.events())
		must.StrHasPrefix(t, `Secrets not updated: execute template "local/n": line 1`, event)
		must.StrNotContains(t, event, vaulttest.Planted)
		h.write("2")
		after(2 * time.Minute)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, "2", h.file("local/n"))
	})
}

func TestFileThatCannotBeWrittenLeavesTheOldOnes(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(onSignal, onSignal))
		path := filepath.Join(h.alloc, "web/local/1")
		must.NoError(t, os.Remove(path))
		must.NoError(t, os.Symlink("/etc/passwd", path))
		h.write("blue")
		after(time.Hour)
		must.SliceEmpty(t, r.did())
		must.Eq(t, "green", h.file("local/0"))
		must.StrContains(t, only(t, h.events()), `Secrets not updated: destination "local/1" is a symbolic link`)
		must.NoError(t, os.Remove(path))
		after(2 * time.Minute)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
	})
}

// A file that cannot be replaced, because something is mounted on it, is found out after others of its generation were.
func TestHalfAGenerationDoesNotOutliveItsCause(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(severalTemplates(onSignal, onSignal))
		path := filepath.Join(h.alloc, "web/local/1")
		must.NoError(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
		unmount := sync.OnceFunc(func() { must.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
		h.Cleanup(unmount)
		h.write("blue")
		after(time.Hour)
		must.Eq(t, "blue", h.file("local/0"))
		must.StrContains(t, only(t, h.events()), `Secrets not updated: destination "local/1" cannot be replaced`)
		h.write("green")
		after(2 * time.Minute)
		must.Eq(t, "green", h.file("local/0"), must.Sprint("it belongs to the other again"))
		unmount()
		h.write("blue")
		after(2 * time.Minute)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.Eq(t, "blue", h.file("local/1"))
	})
}

func TestRenewalsAreNoEvents(t *testing.T) {
	bubble(t, func(h *host) {
		h.start(whole)
		after(48 * time.Hour)
		must.Greater(t, 100, h.Calls("PUT sys/leases/renew")+h.Calls("PUT auth/token/renew-self"))
		must.SliceEmpty(t, h.events())
	})
}

// For how long the trouble lasts is in the message, and is no other trouble.
func TestTroubleIsToldOnce(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		h.crash()
		must.NoError(t, os.Remove(filepath.Join(h.config.StateDir, state.FileOf("alloc-1/web"))))
		h.identity(expired)
		h.boot()
		r.recovered()
		after(8 * time.Hour)
		must.StrContains(t, only(t, h.events()), "Secrets not updated: ")
		must.Eq(t, []string{"recover"}, r.did())
	})
}

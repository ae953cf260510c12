package driver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// The operator's mistakes with a cluster. Each is made by one boot and mended by the next.
var mistakes = map[string]struct {
	make  func(*host)
	says  string // what to do
	waits bool   // even for revocation: the address is not configured
}{
	"misspelt": {func(h *host) { h.config.Clusters[0].Name = "defualt" },
		`cluster "default" is unknown: the operator has configured "defualt": correct the name of its vault block of plugin "vault-fake"`, false},
	"missing": {func(h *host) { h.config.Clusters = nil },
		`its token is from http://127.0.0.1:8200, and no vault block of plugin "vault-fake" has that address: correct vault "default", or add a block with the address`, true},
	"of another address": {func(h *host) { h.config.Clusters[0].Address = "http://127.0.0.1:9999" },
		`its token is from http://127.0.0.1:8200, and no vault block of plugin "vault-fake" has that address: correct vault "default", or add a block with the address`, true},
	"of another namespace": {func(h *host) { h.config.Clusters[0].Namespace = "team" },
		`vault "default" of plugin "vault-fake" has another address, role or namespace now than its token is from: correct it`, false},
}

// bootWithMistake boots with a mistake, and returns a boot without it.
func (h *host) bootWithMistake(make func(*host)) (mended func()) {
	before := h.config
	h.config.Clusters = slices.Clone(h.config.Clusters)
	h.crash()
	make(h)
	h.boot()
	return func() {
		h.crash()
		h.config = before
		h.boot()
	}
}

func TestTaskKeepsItsSessionOverAMistakeOfTheOperators(t *testing.T) {
	for name, mistake := range mistakes {
		for how, boots := range map[string]int{"for one boot": 1, "for two boots": 2} {
			t.Run(name+" "+how, func(t *testing.T) {
				bubble(t, func(h *host) {
					h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
					h.Creds["app"] = vaulttest.Creds{TTL: 24 * time.Hour}
					r := h.start(asApp + templateHCL("secrets/db", creds, ""))
					process, token, user := r.process(), only(t, h.Tokens()), only(t, h.Users())
					mended := h.bootWithMistake(mistake.make)
					h.Down(true) // another Vault is not there, or does not know the task
					r.recovered()
					if boots == 2 {
						after(time.Minute)
						h.reboot()
						r.recovered()
					}
					after(time.Minute)
					must.Eq(t, 1, h.logged("a session is kept for later"))
					must.StrContains(t, h.log.String(), strings.ReplaceAll(mistake.says, `"`, `\"`))
					must.Eq(t, 1, h.logged("taken over after the end of the plugin before, the session of vault \"default\" has to "+
						"wait: "))
					must.Eq(t, user, h.file("secrets/db"))
					h.Down(false)
					mended()
					r.recovered()
					r.did()
					after(time.Hour)
					must.SliceEmpty(t, r.did())
					must.True(t, process == r.process())
					must.Eq(t, token, only(t, h.Tokens()))
					must.Eq(t, user, only(t, h.Users()))
					must.Eq(t, 1, h.Logins())
					r.stop()
					after(olderLinger)
					h.nothingLeft()
				})
			})
		}
	}
}

// What a task has left when it ended under a mistake, or before it, is revoked when its Vault is configured: at once
// where only the name of the block is another. No other Vault is shown the token.
func TestWhatIsToBeRevokedWaitsForItsVault(t *testing.T) {
	config := asApp + templateHCL("secrets/db", creds, "")
	for name, mistake := range mistakes {
		for how, end := range map[string]func(r *run, reboot func()){
			"of a task that had ended": func(r *run, reboot func()) {
				r.Down(true)
				r.stop()
				after(time.Minute)
				reboot()
				r.Down(false)
			},
			"of a task that ends":             func(r *run, reboot func()) { reboot(); r.recovered(); r.stop() },
			"of a task that nobody comes for": func(r *run, reboot func()) { r.exit(1); reboot() },
			"of a task that is started anew": func(r *run, reboot func()) {
				r.exit(1)
				reboot()
				_, _, err := r.StartTask(r.job(config))
				must.Error(r, err)
			},
		} {
			t.Run(how+", "+name, func(t *testing.T) {
				bubble(t, func(h *host) {
					h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
					h.Creds["app"] = vaulttest.Creds{TTL: 24 * time.Hour}
					r := h.start(config)
					token, asked := only(t, h.Tokens()), 0
					var mended func()
					end(r, func() {
						asked = h.Calls("")
						h.Break(vaulttest.Fault{Match: "PUT auth/jwt-nomad/login", Status: 400})
						mended = h.bootWithMistake(mistake.make)
					})
					after(time.Hour)
					if mistake.waits {
						must.True(t, h.Lives(token))
						must.Len(t, 1, h.records())
						must.Eq(t, 1, h.logged("cannot revoke yet"))
						must.StrContains(t, h.log.String(), strings.ReplaceAll(mistake.says, `"`, `\"`))
						must.Eq(t, asked+h.Logins()-1, h.Calls(""))
						mended()
						after(unclaimedAfter + stopLinger)
					}
					h.nothingLeft()
				})
			})
		}
	}
}

// A block of another name with the address of old is enough, also without another boot.
func TestWhatIsToBeRevokedFindsItsVaultByTheAddress(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
		r := h.start(whole)
		_ = h.bootWithMistake(mistakes["of another address"].make)
		r.recovered()
		r.stop()
		after(time.Hour)
		must.Len(t, 1, h.records())
		old := h.Cluster()
		old.Name = "old"
		h.config.Clusters = append(h.config.Clusters, old)
		must.NoError(t, h.Configure(h.config))
		after(time.Minute)
		h.nothingLeft()
		must.Eq(t, 1, h.logged("revoked at last, or ended by its TTL"))
	})
}

func TestTaskAdoptsWhatWasKeptWithoutAnotherBoot(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		token := only(t, h.Tokens())
		_ = h.bootWithMistake(mistakes["misspelt"].make)
		r.recovered()
		after(time.Minute)
		h.config.Clusters[0].Name = "default"
		must.NoError(t, h.Configure(h.config))
		after(3 * time.Hour)
		must.Eq(t, []string{"recover"}, r.did())
		must.Eq(t, token, only(t, h.Tokens()))
		r.stop()
		after(olderLinger)
		h.nothingLeft()
	})
}

// What was kept is not kept for ever.
func TestWhatWasKeptIsForgottenWhenItsTokensHaveEnded(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(whole)
		_ = h.bootWithMistake(mistakes["missing"].make)
		r.recovered()
		r.stop()
		after(30 * time.Minute)
		must.Len(t, 1, h.records())
		after(time.Hour)
		must.SliceEmpty(t, h.records())
	})
}

// A cluster's name that means another Vault for good: the task has its secrets from there, and what it had of the one
// before is revoked when somebody says where that is.
func TestClusterThatMovedIsOneRotation(t *testing.T) {
	bubble(t, func(h *host) {
		h.SetRole("app", vaulttest.Role{TTL: 24 * time.Hour})
		h.Creds["app"] = vaulttest.Creds{TTL: 24 * time.Hour}
		next := vaulttest.New(h.T)
		next.JWT, next.Creds["app"] = h.JWT, vaulttest.Creds{TTL: time.Hour}
		next.RevokeToken(next.Issue("app")) // so that its first user has another name
		moved := next.Cluster()
		moved.Address = "http://127.0.0.1:9999"
		r := h.start(asApp + templateHCL("secrets/db", creds, ""))
		h.bootWithMistake(func(h *host) { h.config.Clusters[0] = moved })
		r.recovered()
		after(time.Minute)
		must.Eq(t, []string{"recover", "stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, only(t, next.Users()), h.file("secrets/db"))
		must.Len(t, 1, h.Users())
		old := h.Cluster()
		old.Name = "old"
		h.bootWithMistake(func(h *host) { h.config.Clusters = append(h.config.Clusters, old) })
		r.recovered()
		after(time.Minute)
		must.Eq(t, []string{"recover"}, r.did())
		must.SliceEmpty(t, h.Tokens())
		must.SliceEmpty(t, h.Users())
		r.stop()
		after(olderLinger)
		must.SliceEmpty(t, next.Tokens())
		h.nothingLeft()
	})
}

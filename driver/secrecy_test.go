package driver

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/logpipe/logpipetest"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// No value, token or JWT is in a line, an event, an error, an argument or what Nomad stores, whatever happens.
func TestNoSecretIsTold(t *testing.T) {
	bubble(t, func(h *host) {
		var told strings.Builder
		tell := func(words ...string) { told.WriteString(strings.Join(words, "\n") + "\n") }
		stdout, stderr := logpipetest.FIFOs(t, h.alloc)
		out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		defer out.Close()
		defer err.Close()
		secret := vaulttest.Planted + "-in-kv"
		show := func() {
			document, failed := json.Marshal(h.Status())
			must.NoError(t, failed)
			tell(string(document))
		}
		h.write(secret)

		cfg := h.job("vault {\n role = \"app\"\n env = true\n file = true\n change_mode = \"signal\"\n change_signal = " +
			"\"SIGHUP\"\n}\n" +
			templateHCL("secrets/env", "COLOR="+kv+"\nUSER="+strings.ReplaceAll(creds, "username", "password"), "env = true") +
			templateHCL("local/n", `{{ with secret "secret/data/web" }}{{ if .Data.data.fails }}{{ .Data.data.k | parseInt }}{{ end }}{{ end }}`, onScript) +
			secretHCL("all", "env = true\n format = \"yaml\"\n destination = \"secrets/all\"\n"+onNoop) +
			secretHCL("bytes", "key = \"k\"\n optional = true\n"+onNoop))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		handle, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		r := &run{h, cfg, handle}
		must.StrContains(t, h.file("secrets/env"), secret)
		must.StrContains(t, h.file("secrets/vault_token"), vaulttest.Planted)

		h.inner.exec = func(cmd []string) (*drivers.ExecTaskResult, error) {
			return &drivers.ExecTaskResult{Stdout: []byte(secret), ExitResult: &drivers.ExitResult{ExitCode: 3}}, nil
		}
		h.write(secret + "1")
		after(noticed)
		h.Put("secret/web", map[string]any{"k": secret + "2", "fails": true})
		after(noticed)
		h.write(secret + "3")
		after(2 * time.Minute)
		h.RevokeTokens()
		after(2 * time.Hour)
		for _, f := range []vaulttest.Fault{{Hang: true}, {Status: 403}, {Status: 404}, {Status: 400},
			{Body: `{"errors": ["` + secret + `"]}`}, {Reset: true}} {
			mend := h.Break(f)
			after(2 * time.Hour)
			show()
			mend()
			after(2 * time.Minute)
		}
		h.identity(strings.TrimSuffix(h.JWT, "x")[:len(h.JWT)-60])
		h.RevokeTokens()
		after(2 * time.Hour)
		h.identity(h.JWT)
		after(2 * time.Minute)
		tell(r.did()...)
		tell(h.events()...)
		tell(h.log.String())
		h.reboot()
		r.recovered()
		must.NoError(t, os.WriteFile(h.alloc+"/web/secrets/env", []byte(secret), 0o600))
		after(2 * time.Hour)
		show()
		h.Down(true)
		r.stop()
		show()
		after(time.Hour)
		show()
		tell(r.did()...)
		tell(h.events()...)
		tell(h.log.String(), err.Read())
		stored := r.stored()
		tell(string(stored.DriverState), strings.Join(stored.Config.EnvList(), "\n"))
		h.Down(false)

		for _, failure := range failures {
			config := failure.config
			if config == "" {
				config = whole
			}
			_, _, failed := h.StartTask(h.job(strings.ReplaceAll(config, "vault {", "vault {\n env = true")))
			if failed != nil {
				tell(failed.Error())
			}
		}
		must.Greater(t, 10000, told.Len())
		for _, never := range append(h.Tokens(), vaulttest.Planted, h.JWT, h.JWT[strings.LastIndex(h.JWT, ".")+1:][:40]) {
			if at := strings.Index(told.String(), never); at >= 0 {
				t.Errorf("told: ...%.200s", told.String()[max(0, at-150):])
			}
		}
	})
}

package driver

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/logpipe"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// FuzzTaskConfig decodes any config block, as a job from Nomad's API that the agent brings into our schema, or as the
// bytes that an agent sends. What is refused is so in one line without the text of a template; what is accepted
// writes below the task's directories and nowhere else.
func FuzzTaskConfig(f *testing.F) {
	for _, config := range []string{
		`{"command": "app", "kill_signal": "sigint", "kill_timeout": "7s"}`,
		`{"vault": [{"role": "app", "env": true, "file": true, "change_mode": "signal", "change_signal": "SIGHUP"}, {"name": "b", "cluster": "default", "namespace": "x", "identity_file": "private/vault.jwt"}]}`,
		`{"template": [{"data": "{{ with secret \"a\" }}{{ .Data.k }}{{ end }}", "destination": "secrets/a.env", "env": true, "perms": "0600", "uid": 1, "gid": "2"}]}`,
		`{"template": [{"source": "local/a.tpl", "destination": "${NOMAD_SECRETS_DIR}/a", "left_delimiter": "<<", "right_delimiter": ">>", "error_on_missing_key": "true", "once": 1, "vault": "b"}], "vault": {"name": "b"}}`,
		`{"template": {"data": "x", "destination": "/alloc/../secrets/x", "splay": "1m", "poll_interval": "30s", "wait": {"min": "1s", "max": "2s"}, "change_mode": "script", "change_script": {"command": "/bin/x", "args": ["a", "b"], "timeout": "1s", "fail_on_error": true}}}`,
		`{"template": [{"data": "x", "destination": "/task/secrets/vault_token"}, {"data": "x", "destination": "private/x"}, {"data": "x", "destination": "../x\n"}]}`,
		`{"vault": [{"name": "../x"}, {"name": ""}, {"change_mode": "x\ny"}], "template": [{"poll_interval": "1ns", "destination": "local/x", "data": "y"}]}`,
		`{"kill_timeout": "1e9h"}`, `{"template": [{"data": ["x"], "destination": {}}]}`, `{"vault": "x"}`, `{}`, `null`,
	} {
		f.Add([]byte(config), false)
		var block map[string]any
		must.NoError(f, json.Unmarshal([]byte(config), &block))
		f.Add(packed(f, block), true)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.Cleanup(cancel)
	d := New(ctx, hclog.NewNullLogger(), "vault-fake", newWrapped(ctx, &machine{procs: map[int]*taskProcess{}}))
	must.NoError(f, d.Configure(config.Operator{Name: "vault-fake",
		Clusters: []vault.Cluster{{Name: "default", Address: "http://127.0.0.1:8200"}},
		StateDir: "/none", StartTimeout: time.Minute, PollInterval: 30 * time.Second, MinPollInterval: 5 * time.Second}))
	handOver := agent(f)

	f.Fuzz(func(t *testing.T, data []byte, sent bool) {
		cfg := &drivers.TaskConfig{ID: "a/web/1", AllocID: "a", Name: "web", AllocDir: "/none/a", Env: map[string]string{
			"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/task/local", "NOMAD_SECRETS_DIR": "/task/secrets"}}
		if strings.Contains(string(data), vaulttest.Planted) || !handOver(cfg, data, sent) {
			return
		}
		task, err := d.newTask(cfg, logpipe.New("", "", "", ""))
		if err == nil {
			err = task.conf.Permit(task.op, "default")
		}
		if err != nil {
			must.StrNotContains(t, err.Error(), "\n")
			must.StrNotContains(t, err.Error(), vaulttest.Planted)
			return
		}
		must.GreaterEq(t, 0, task.conf.KillAfter)
		seen := map[string]bool{}
		for _, path := range task.renderer.Paths() {
			must.True(t, filepath.IsLocal(path) && filepath.Clean(path) == path, must.Sprint(path))
			top, rest, _ := strings.Cut(path, "/")
			must.True(t, top == "alloc" || top == "web" && rest != "", must.Sprint(path))
			must.False(t, rest == "private" || strings.HasPrefix(rest, "private/"), must.Sprint(path))
			must.False(t, seen[path], must.Sprintf("%s is written twice", path))
			seen[path] = true
		}
		for _, c := range task.conf.Templates {
			must.LessEq(t, 0o777, c.Perm)
			must.GreaterEq(t, 0, min(c.SplayMax, c.PollEvery, c.WaitMin, c.WaitMax-c.WaitMin))
			must.True(t, c.Once || c.PollInterval == "" || c.PollEvery >= 5*time.Second)
		}
	})
}

// agent returns what gives a task its config block as an agent does it, with a secret planted in the text of each
// template. It is false for a block that no agent hands on.
func agent(f *testing.F) func(cfg *drivers.TaskConfig, data []byte, sent bool) bool {
	spec, diagnostics := hclspecutils.Convert(hclspec.NewObject(config.TaskSpec()))
	must.False(f, diagnostics.HasErrors())
	return func(cfg *drivers.TaskConfig, data []byte, sent bool) bool {
		var block map[string]any
		if sent {
			return base.MsgPackDecode(data, &block) == nil && cfg.EncodeConcreteDriverConfig(plant(block)) == nil
		}
		if json.Unmarshal(data, &block) != nil {
			return false
		}
		value, diagnostics, _ := hclutils.ParseHclInterface(plant(block), spec, nil)
		return !diagnostics.HasErrors() && cfg.EncodeDriverConfig(value) == nil
	}
}

// plant puts a secret in front of every text with the name data.
func plant(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if text, ok := value.(string); ok && name == "data" && text != "" {
				value = vaulttest.Planted + text
			}
			v[name] = plant(value)
		}
	case []any:
		for i := range v {
			v[i] = plant(v[i])
		}
	}
	return v
}

func packed(f *testing.F, block map[string]any) (data []byte) {
	must.NoError(f, base.MsgPackEncode(&data, block))
	return data
}

package render

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// BenchmarkRender is what a look costs at a task whose templates have not changed: twenty templates of ten secrets.
func BenchmarkRender(b *testing.B) {
	server := vaulttest.New(b)
	part := base64.RawURLEncoding.EncodeToString
	jwt := part([]byte(`{"alg":"EdDSA"}`)) + "." + part([]byte(`{"sub":"web"}`)) + "." + part(make([]byte, 64))
	cfg := &drivers.TaskConfig{ID: "a/web/1", AllocID: "a", Name: "web", AllocDir: b.TempDir(),
		Env: map[string]string{"NOMAD_TOKEN_vault": jwt}}
	server.JWT = jwt
	for _, dir := range []string{"alloc", "web/local", "web/secrets"} {
		must.NoError(b, os.MkdirAll(filepath.Join(cfg.AllocDir, dir), 0o755))
	}
	conf := &config.Task{KillTimeout: "5s", Vaults: []config.Vault{{Name: "default", Cluster: "default", Role: "app",
		Identity: "vault", ChangeMode: "noop"}}}
	for i := range 20 {
		path := fmt.Sprintf("secret/%d", i/2)
		server.Put(path, map[string]any{"username": "app", "password": "0123456789abcdef"})
		conf.Templates = append(conf.Templates, config.Template{Destination: fmt.Sprintf("local/%d", i),
			Data:          `{{ with secret "` + path + `" }}{{ .Data.data.username }}:{{ .Data.data.password }}{{ end }}`,
			LeftDelimiter: "{{", RightDelimiter: "}}",
			Output: config.Output{Vault: "default", Perms: "0644", UID: -1, GID: -1, Splay: "5s", ChangeMode: "noop"}})
	}
	must.NoError(b, conf.Validate(config.Operator{PollInterval: time.Hour}))
	client, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	must.NoError(b, err)
	defer client.Close()
	env := credentials.Env{Logger: hclog.NewNullLogger(),
		Client: func(string) (*session.Cluster, error) { return client, nil },
		Permit: func(config.Vault, string) error { return nil }}
	set := credentials.New(env, cfg, *conf, func(session.Notice) {}, func() {})
	r, err := New(cfg, conf, config.Operator{}, set, func(_ string, f func() error) error { return f() })
	must.NoError(b, err)
	last, err := r.Render(b.Context(), nil, true)
	must.NoError(b, err)
	last.Snapshot.Commit(0)
	b.ReportAllocs()
	for b.Loop() {
		g, err := r.Render(b.Context(), last, false)
		must.NoError(b, err)
		must.Eq(b, last.Sums, g.Sums)
	}
}

package plugin

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-version"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/hashicorp/nomad/plugins/shared/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin/drivertest"
)

var (
	_ drivers.DriverPlugin               = (*Plugin)(nil)
	_ drivers.ExecTaskStreamingRawDriver = (*Plugin)(nil)
	_ drivers.DriverNetworkManager       = (*Plugin)(nil)
)

func TestPluginInfo(t *testing.T) {
	info, err := newPlugin(t, "docker", "docker").PluginInfo()
	must.NoError(t, err)
	must.Eq(t, "docker", info.Name)
	must.Eq(t, base.PluginTypeDriver, info.Type)
	must.SliceContains(t, info.PluginApiVersions, "v0.1.0")
	ours, err := version.NewVersion(info.PluginVersion)
	must.NoError(t, err)
	must.False(t, ours.LessThan(version.Must(version.NewVersion("0.1.0"))),
		must.Sprint("the agent would prefer its built-in driver"))
}

// TestConfigureAsTheAgentDoes calls over gRPC, twice, without a client's configuration and without Vault or Docker.
func TestConfigureAsTheAgentDoes(t *testing.T) {
	for _, wraps := range Drivers() {
		t.Run(wraps, func(t *testing.T) {
			h := testutils.NewDriverHarness(t, newPlugin(t, wraps, "vault-"+wraps))
			schema, err := h.ConfigSchema()
			must.NoError(t, err)
			raw, err := drivertest.Encode(t, schema, `
				state_dir = "`+t.TempDir()+`"
				vault "default" { address = "http://127.0.0.1:1" }`)
			must.NoError(t, err)
			for range 2 {
				must.NoError(t, h.SetConfig(&base.Config{PluginConfig: raw}))
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	for sentence, c := range map[string]struct {
		wraps, body string
		want        fsisolation.Mode
	}{
		"exec's root is the driver's to build":   {"exec", ``, fsisolation.Image},
		"exec's root is Nomad's when configured": {"exec", `filesystem = "chroot"`, fsisolation.Chroot},
		"docker is as it was":                    {"docker", ``, fsisolation.Image},
		"raw_exec is as it was":                  {"raw_exec", ``, fsisolation.None},
	} {
		t.Run(sentence, func(t *testing.T) {
			p := newPlugin(t, c.wraps, "vault-"+c.wraps)
			must.NoError(t, configure(t, p, c.body+"\n state_dir = \""+t.TempDir()+"\""))
			caps, err := p.Capabilities()
			must.NoError(t, err)
			must.Eq(t, c.want, caps.FSIsolation)
			must.Eq(t, c.wraps == "docker", caps.MustInitiateNetwork)
			must.True(t, caps.Exec && caps.SendSignals)
		})
	}
}

// reporter is a wrapped driver that sends one fingerprint.
type reporter struct {
	drivers.DriverPlugin
	report *drivers.Fingerprint
}

func (r reporter) Fingerprint(context.Context) (<-chan *drivers.Fingerprint, error) {
	reports := make(chan *drivers.Fingerprint, 1)
	reports <- r.report
	close(reports)
	return reports, nil
}

// stateDir is in memory, so that nothing is mounted on it.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nomad-driver-vault-test-")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestFingerprintIsTheWrappedDriversUnderOurName(t *testing.T) {
	p := newPlugin(t, "docker", "vault-docker")
	must.NoError(t, configure(t, p, `
		state_dir = "`+stateDir(t)+`"
		vault "west" {
			address               = "http://127.0.0.1:2"
			jwt_auth_backend_path = "jwt-west"
			create_from_role      = "west"
			namespace             = "team"
			tls_server_name       = "vault"
		}
		vault "default" { address = "http://127.0.0.1:1" }`))
	p.inner = reporter{report: &drivers.Fingerprint{
		Health:            drivers.HealthStateUnhealthy,
		HealthDescription: "Failed to connect to docker daemon",
		Attributes: map[string]*structs.Attribute{
			"driver.docker":         structs.NewBoolAttribute(true),
			"driver.docker.version": structs.NewStringAttribute("28.1"),
		},
	}}
	reports, err := p.Fingerprint(context.Background())
	must.NoError(t, err)
	report := <-reports
	must.Eq(t, &drivers.Fingerprint{
		Health:            drivers.HealthStateUnhealthy,
		HealthDescription: "Failed to connect to docker daemon",
		Attributes: map[string]*structs.Attribute{
			"driver.vault-docker.version":                             structs.NewStringAttribute("28.1"),
			"driver.vault-docker.plugin_version":                      structs.NewStringAttribute(Version),
			"driver.vault-docker.wraps":                               structs.NewStringAttribute("docker"),
			"driver.vault-docker.clusters":                            structs.NewStringAttribute("default,west"),
			"driver.vault-docker.vault.default.address":               structs.NewStringAttribute("http://127.0.0.1:1"),
			"driver.vault-docker.vault.default.jwt_auth_backend_path": structs.NewStringAttribute("jwt-nomad"),
			"driver.vault-docker.vault.west.address":                  structs.NewStringAttribute("http://127.0.0.1:2"),
			"driver.vault-docker.vault.west.jwt_auth_backend_path":    structs.NewStringAttribute("jwt-west"),
			"driver.vault-docker.vault.west.create_from_role":         structs.NewStringAttribute("west"),
			"driver.vault-docker.vault.west.namespace":                structs.NewStringAttribute("team"),
		},
	}, report)
	_, more := <-reports
	must.False(t, more)

	attributes := map[string]string{}
	for name, value := range report.Attributes {
		attributes[name], _ = value.GetString()
	}
	wraps, clusters := ReadFingerprint("vault-docker", attributes)
	must.Eq(t, "docker", wraps)
	must.Eq(t, map[string]vault.Cluster{
		"default": {Name: "default", Address: "http://127.0.0.1:1", AuthPath: "jwt-nomad"},
		"west":    {Name: "west", Address: "http://127.0.0.1:2", AuthPath: "jwt-west", Role: "west", Namespace: "team"},
	}, clusters)
}

// once is a wrapped driver that reports once, and then nothing new.
type once struct{ drivers.DriverPlugin }

func (once) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	reports := make(chan *drivers.Fingerprint, 1)
	reports <- &drivers.Fingerprint{Health: drivers.HealthStateHealthy}
	context.AfterFunc(ctx, func() { close(reports) })
	return reports, nil
}

// TestFingerprintSaysWhyAClusterIsOff: the report that there was is sent again as soon as the reason changes.
func TestFingerprintSaysWhyAClusterIsOff(t *testing.T) {
	p := newPlugin(t, "exec", "vault-exec")
	file := filepath.Join(t.TempDir(), "token")
	must.NoError(t, configure(t, p, `
		state_dir = "`+stateDir(t)+`"
		vault "plain" { address = "http://127.0.0.1:1" }
		vault "roles" {
			address          = "http://127.0.0.1:1"
			create_from_role = "nomad-cluster"
			token_file       = "`+file+`"
		}`))
	p.inner = once{}
	ctx, cancel := context.WithCancel(context.Background())
	reports, err := p.Fingerprint(ctx)
	must.NoError(t, err)
	says := func(text string) {
		for report := range reports {
			must.MapNotContainsKey(t, report.Attributes, "driver.vault-exec.cluster.plain")
			must.MapContainsKey(t, report.Attributes, "driver.vault-exec.vault.roles.address")
			status, _ := report.Attributes["driver.vault-exec.cluster.roles"].GetString()
			if strings.Contains(status, text) {
				return
			}
		}
		t.Fatal("the reports ended")
	}
	says("no such file or directory")
	must.NoError(t, os.WriteFile(file, []byte("hvs.x"), 0o600))
	says("connection refused")
	cancel()
	for range reports { // ends, or the test does not
	}
}

func TestFingerprintOfExecSaysHowTheRootIsMade(t *testing.T) {
	p, state := newPlugin(t, "exec", "vault-exec"), stateDir(t)
	must.NoError(t, configure(t, p, `state_dir = "`+state+`"`))
	must.FileNotExists(t, filepath.Join(state, "lock"), must.Sprint("a process that only validates took the lock"))
	ctx, cancel := context.WithCancel(context.Background())
	reports, err := p.Fingerprint(ctx)
	must.NoError(t, err)
	first := <-reports
	must.Eq(t, structs.NewStringAttribute("bind"), first.Attributes["driver.vault-exec.filesystem"])
	must.Eq(t, structs.NewStringAttribute(""), first.Attributes["driver.vault-exec.clusters"])
	must.MapNotContainsKey(t, first.Attributes, "driver.exec")
	must.FileExists(t, filepath.Join(state, "lock"))
	cancel()
	for range reports { // ends, or the test does not
	}
}

func TestTaskThatNamesNoUserIsJudgedByWhoRunsIt(t *testing.T) {
	me, err := user.Current()
	must.NoError(t, err)
	for wraps, denied := range map[string]string{"exec": "nobody", "raw_exec": me.Username} {
		t.Run(wraps, func(t *testing.T) {
			p := newPlugin(t, wraps, "vault-"+wraps)
			must.NoError(t, configure(t, p, `
				state_dir    = "`+stateDir(t)+`"
				denied_users = ["`+denied+`"]`))
			cfg := drivertest.Allocation(t, "")
			must.NoError(t, cfg.EncodeConcreteDriverConfig(map[string]any{"command": "/bin/true", "kill_timeout": "5s"}))
			_, _, err := p.StartTask(cfg)
			must.ErrorContains(t, err, `the task names no user and would run as "`+denied+`"`)
		})
	}
}

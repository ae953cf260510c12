package wrapped

import (
	"context"
	"maps"
	"strconv"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// newDriver returns one of the drivers, which is not configured. It ends with the test.
func newDriver(t *testing.T, wraps string) drivers.DriverPlugin {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return Find(wraps).New(ctx, hclog.NewNullLogger())
}

// encodeConfig returns the bytes of a plugin's config block for a driver beside Nomad's. It sets state_dir.
func encodeConfig(t *testing.T, wraps string, d drivers.DriverPlugin, body string) []byte {
	t.Helper()
	schema, err := d.ConfigSchema()
	must.NoError(t, err)
	options := maps.Clone(schema.GetObject().Attributes)
	if change := Find(wraps).ChangeDefaults; change != nil {
		change(options)
	}
	if ours := Find(wraps).Options; ours != nil {
		maps.Copy(options, ours(true))
	}
	options["state_dir"] = hclspec.NewAttr("state_dir", "string", true)
	raw, err := drivertest.Encode(t, hclspec.NewObject(options), body+"\n state_dir = "+strconv.Quote(t.TempDir()))
	must.NoError(t, err)
	return raw
}

// configure configures a driver as an agent does that only validates.
func configure(t *testing.T, wraps string, d drivers.DriverPlugin, body string) error {
	t.Helper()
	return d.SetConfig(&base.Config{PluginConfig: encodeConfig(t, wraps, d, body), AgentConfig: &base.AgentConfig{}})
}

// serve returns one of the drivers, without Vault, behind the gRPC connection that it has in the agent.
func serve(t *testing.T, wraps, body string) *testutils.DriverHarness {
	t.Helper()
	return serveDriver(t, wraps, newDriver(t, wraps), body)
}

// serveDriver is serve for a driver that newDriver has returned.
func serveDriver(t *testing.T, wraps string, d drivers.DriverPlugin, body string) *testutils.DriverHarness {
	t.Helper()
	need.Root(t)
	t.Setenv("TMPDIR", t.TempDir()) // the harness leaves its own directories behind
	if wraps == "docker" {
		body += "\n gc {\n image = false\n }"
	}
	h := testutils.NewDriverHarness(t, d)
	drivertest.Configure(t, h, encodeConfig(t, wraps, d, body))
	return h
}

// TestCapabilitiesOfNomadsExecStay guards the variable of Nomad's package behind the returned pointer.
func TestCapabilitiesOfNomadsExecStay(t *testing.T) {
	d := newDriver(t, "exec").(*execDriver)
	must.NoError(t, configure(t, "exec", d, ""))
	_, err := d.Capabilities()
	must.NoError(t, err)
	caps, err := d.processDriver.Capabilities()
	must.NoError(t, err)
	must.Eq(t, fsisolation.Chroot, caps.FSIsolation)
}

func TestRawExecRefusesMounts(t *testing.T) {
	_, _, err := newDriver(t, "raw_exec").StartTask(&drivers.TaskConfig{
		Mounts: []*drivers.MountConfig{{TaskPath: "/data", HostPath: "/srv"}}})
	must.ErrorContains(t, err, `volume_mount "/data"`)
}

// parented is a docker driver that notes what it is asked to start.
type parented struct {
	containerDriver
	started *drivers.TaskConfig
}

func (d *parented) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.started = cfg
	return nil, nil, nil
}

func TestDockerLearnsTheParentJob(t *testing.T) {
	need.Root(t)
	inner, cfg := &parented{}, drivertest.Allocation(t, "")
	cfg.Env["NOMAD_JOB_PARENT_ID"] = "nightly"
	_, _, err := (&dockerDriver{containerDriver: inner}).StartTask(cfg)
	must.NoError(t, err)
	must.Eq(t, "nightly", inner.started.ParentJobID)
	must.Eq(t, "", cfg.ParentJobID)
}

package wrapped

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
	"nomad-driver-vault/plugin/execroot"
)

// recorder is an exec driver that keeps the task it is asked to start.
type recorder struct {
	processDriver
	started *drivers.TaskConfig
}

func (d *recorder) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	d.started = cfg
	handle := drivers.NewTaskHandle(1)
	handle.Config = cfg
	return handle, nil, nil
}

// inRootsOf returns a driver that starts tasks in roots which show those paths of the host. At the end of the test
// nothing may be staged.
func inRootsOf(t *testing.T, nomads processDriver, paths ...string) *execDriver {
	t.Helper()
	need.Root(t)
	d, state := newExecDriver(hclog.NewNullLogger(), nil, nomads), t.TempDir()
	d.config.Filesystem = filesystemBind
	must.NoError(t, d.roots.Configure(execroot.Config{Paths: paths, StateDir: state}))
	t.Cleanup(func() {
		left, err := os.ReadDir(state)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	})
	return d
}

func TestExecKeepsTasksFromTheHostsProcesses(t *testing.T) {
	need.Root(t)
	for sentence, c := range map[string]struct {
		asks, body string
		refused    bool
	}{
		"a task that asks for them is refused":              {asks: "host", refused: true},
		"unless the operator shows them to each":            {asks: "host", body: `default_pid_mode = "host"`},
		"one that does not ask starts":                      {},
		"so does one that asks for its own":                 {asks: "private"},
		"a chroot, where tasks read all anyway, is Nomad's": {asks: "host", body: `filesystem = "chroot"`},
	} {
		t.Run(sentence, func(t *testing.T) {
			d, inner := newDriver(t, "exec").(*execDriver), &recorder{}
			must.NoError(t, configure(t, "exec", d, c.body))
			d.processDriver = inner
			cfg := drivertest.Allocation(t, "")
			must.NoError(t, cfg.EncodeConcreteDriverConfig(map[string]any{"command": "sh", "pid_mode": c.asks}))
			_, _, err := d.StartTask(cfg)
			must.Eq(t, c.refused, inner.started == nil, must.Sprint(err))
			if c.refused {
				must.ErrorContains(t, err, `config pid_mode "host" is not allowed`)
			}
		})
	}
}

func TestExecStartsACopyOfTheTask(t *testing.T) {
	nomads := &recorder{}
	cfg := drivertest.Allocation(t, "sh")
	before := cfg.Copy()
	handle, _, err := inRootsOf(t, nomads, "/usr", "/bin").StartTask(cfg)
	must.NoError(t, err)
	must.EqOp(t, cfg, handle.Config)
	must.Eq(t, before, cfg)
	must.SliceNotEmpty(t, nomads.started.Mounts)
}

// With an empty dns block Nomad's exec has the servers that systemd-resolved asks, where the host's file names only
// that.
func TestExecTaskInANetworkOfItsOwnGetsAResolverThatItReaches(t *testing.T) {
	empty, its := &drivers.DNSConfig{}, &drivers.DNSConfig{Servers: []string{"192.0.2.1"}}
	for sentence, c := range map[string]struct {
		network *drivers.NetworkIsolationSpec
		dns     *drivers.DNSConfig
		want    *drivers.DNSConfig
	}{
		"a task in a bridge":                  {network: &drivers.NetworkIsolationSpec{Path: "/run/netns/x"}, want: empty},
		"its dns block comes first":           {&drivers.NetworkIsolationSpec{Path: "/run/netns/x"}, its, its},
		"one in the host's network":           {},
		"one whose network is still the host": {network: &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeHost}},
	} {
		t.Run(sentence, func(t *testing.T) {
			nomads, secret := &recorder{}, drivertest.NewCanary(t)
			cfg := drivertest.Allocation(t, "sh")
			cfg.NetworkIsolation, cfg.DNS = c.network, c.dns
			drivertest.Write(t, cfg.TaskDir().Dir, map[string]string{"resolv.conf": "->" + secret.Path})
			_, _, err := inRootsOf(t, nomads, "/usr", "/bin").StartTask(cfg)
			must.NoError(t, err)
			must.Eq(t, c.want, nomads.started.DNS)
			must.Eq(t, c.dns, cfg.DNS)
			info, err := os.Lstat(cfg.TaskDir().Dir + "/resolv.conf")
			must.NoError(t, err)
			must.Eq(t, c.want != nil, isOwn(info), must.Sprint("what root writes is no link of the task's"))
		})
	}
}

func TestExecLeavesAChrootToNomad(t *testing.T) {
	need.Root(t)
	inner, log := &recorder{}, &strings.Builder{}
	d := newExecDriver(hclog.New(&hclog.LoggerOptions{Output: log}), nil, inner)
	d.config = execConfig{Filesystem: "chroot",
		Vault: map[string]*vaultFiles{"a": {TokenFile: "/etc/token", KeyFile: "/opt/key"}, "b": {}}}
	cfg := drivertest.Allocation(t, "anything")
	key := drivertest.NewCanary(t)
	drivertest.Write(t, cfg.TaskDir().Dir, map[string]string{"etc/token": "t", "executor.out": "->" + key.Path})
	_, _, err := d.StartTask(cfg)
	must.NoError(t, err)
	key.Lives(t)
	info, err := os.Lstat(cfg.TaskDir().Dir + "/executor.out")
	must.NoError(t, err)
	must.True(t, isOwn(info), must.Sprint("what root opens is root's there, too"))
	must.EqOp(t, cfg, inner.started)
	must.StrContains(t, log.String(),
		"exec tasks can read this file: chroot_env puts it into their root; move it elsewhere: "+
			"vault=a token_file=/etc/token\n")
	must.StrNotContains(t, log.String(), "key")
}

// reported is an exec driver that sends one fingerprint.
type reported struct {
	processDriver
	health drivers.HealthState
}

func (d reported) Fingerprint(context.Context) (<-chan *drivers.Fingerprint, error) {
	reports := make(chan *drivers.Fingerprint, 1)
	reports <- &drivers.Fingerprint{Health: d.health}
	close(reports)
	return reports, nil
}

// TestHostWithoutIdmappedMounts has a path on sysfs, which has none.
func TestHostWithoutIdmappedMounts(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("/var/lib", "nomad-driver-vault-test-")
	must.NoError(t, err)
	must.NoError(t, unix.Mount("none", dir, "sysfs", 0, ""))
	t.Cleanup(func() { must.NoError(t, errors.Join(unix.Unmount(dir, 0), os.Remove(dir))) })
	says := "mount " + dir + ` of paths without the owners of its files: ` +
		"mount_setattr: invalid argument: it takes Linux 5.12"
	d := inRootsOf(t, &recorder{}, "/etc", dir)
	for sentence, c := range map[string]struct {
		filesystem string
		inner      drivers.HealthState
		want       drivers.Fingerprint
	}{
		"is not healthy": {"bind", drivers.HealthStateHealthy,
			drivers.Fingerprint{Health: drivers.HealthStateUnhealthy, HealthDescription: says}},
		"is with Nomad's own chroot": {"chroot", drivers.HealthStateHealthy,
			drivers.Fingerprint{Health: drivers.HealthStateHealthy}},
		"is undetected where Nomad's is": {"bind", drivers.HealthStateUndetected,
			drivers.Fingerprint{Health: drivers.HealthStateUndetected}},
	} {
		t.Run(sentence, func(t *testing.T) {
			d.config.Filesystem, d.processDriver = c.filesystem, reported{health: c.inner}
			reports, err := d.Fingerprint(context.Background())
			must.NoError(t, err)
			report := <-reports
			must.Eq(t, c.want.Health, report.Health)
			must.StrHasPrefix(t, c.want.HealthDescription, report.HealthDescription)
		})
	}
	d.config.Filesystem, d.processDriver = "bind", &recorder{}
	_, _, err = d.StartTask(drivertest.Allocation(t, "sh"))
	must.ErrorContains(t, err, says)
}

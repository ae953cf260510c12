package plugin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestOwnerlessShowsWhatEveryoneMayRead reads as root, whom no mode keeps out elsewhere.
func TestOwnerlessShowsWhatEveryoneMayRead(t *testing.T) {
	requireRoot(t)
	host := t.TempDir()
	write(t, host, map[string]string{"etc/passwd": "x", "etc/shadow": "x", "etc/group": "x", "etc/ssl/private/key": "x", "etc/link": "->shadow",
		"etc/absolute": "->" + host + "/etc/passwd", "etc/mounted/": "", "etc/other/": "", "etc/user/own": "x"})
	for name, mode := range map[string]os.FileMode{"etc": 0o755, "etc/passwd": 0o644, "etc/shadow": 0o640, "etc/group": 0o666,
		"etc/ssl": 0o755, "etc/ssl/private": 0o710, "etc/ssl/private/key": 0o644, "etc/mounted": 0o755, "etc/user": 0o755, "etc/user/own": 0o600} {
		must.NoError(t, os.Chmod(filepath.Join(host, name), mode))
	}
	must.NoError(t, os.Chown(host+"/etc/user/own", noOne-1, noOne-1))
	for dir, fs := range map[string]string{"mounted": "tmpfs", "other": "sysfs"} { // the one has idmapped mounts, the other has not
		must.NoError(t, unix.Mount("none", filepath.Join(host, "etc", dir), fs, 0, ""))
		t.Cleanup(func() { must.NoError(t, unix.Unmount(filepath.Join(host, "etc", dir), 0)) })
	}
	write(t, host, map[string]string{"etc/mounted/open": "x", "etc/mounted/closed": "x"})
	must.NoError(t, os.Chmod(host+"/etc/mounted/closed", 0o600))

	o := &ownerless{stateDir: t.TempDir(), logger: hclog.NewNullLogger()}
	at, err := o.mount([]string{host + "/etc", host + "/etc/ssl"}, []string{"/", host + "/etc/mounted", host + "/etc/other"})
	must.NoError(t, err)
	defer o.remove(at)
	// What a host does while tasks run: a file is renamed over another one, and files come.
	write(t, host, map[string]string{"etc/new": "x", "etc/late": "x", "etc/open": "x"})
	must.NoError(t, os.Chmod(host+"/etc/new", 0o600))
	must.NoError(t, os.Chmod(host+"/etc/late", 0o640))
	must.NoError(t, os.Rename(host+"/etc/new", host+"/etc/shadow"))
	for name, readable := range map[string]bool{
		"passwd": true, "group": true, "open": true, "absolute": true, "mounted/open": true,
		"shadow": false, "link": false, "late": false, "ssl/private/key": false, "user/own": false, "mounted/closed": false,
	} {
		_, err := os.ReadFile(filepath.Join(at+host, "etc", name))
		must.Eq(t, readable, err == nil, must.Sprintf("%s: %v", name, err))
		must.True(t, err == nil || os.IsPermission(err))
	}
	_, err = os.ReadDir(at + host + "/etc/ssl/private")
	must.ErrorIs(t, err, os.ErrPermission)
	other, err := os.ReadDir(at + host + "/etc/other")
	must.NoError(t, err)
	must.SliceEmpty(t, other, must.Sprint("what cannot be shown without owners is not shown"))
	must.ErrorIs(t, os.WriteFile(at+host+"/etc/group", nil, 0o644), unix.EROFS)
}

func TestOwnerlessLeavesNothingBehind(t *testing.T) {
	requireRoot(t)
	host, state := t.TempDir(), t.TempDir()
	ended := exec.Command("true")
	must.NoError(t, ended.Run())
	dead := filepath.Join(state, fmt.Sprintf("root-%d-1", ended.Process.Pid))
	others := []string{"root-1-1", "root-x", "lock"} // a process that lives, and what is none of it
	for _, dir := range append(others, filepath.Base(dead)) {
		must.NoError(t, os.Mkdir(filepath.Join(state, dir), 0o700))
	}
	must.NoError(t, unix.Mount("none", dead, "tmpfs", 0, ""))
	o := &ownerless{stateDir: state, logger: hclog.NewNullLogger()}
	for _, dirs := range [][]string{{host}, {"/sys/kernel"}} {
		at, err := o.mount(dirs, nil)
		must.Eq(t, dirs[0] == host, err == nil)
		if err == nil {
			o.remove(at)
		}
	}
	left, err := os.ReadDir(state)
	must.NoError(t, err)
	must.SliceLen(t, len(others), left)
	for _, entry := range left {
		must.SliceContains(t, others, entry.Name())
	}
	points, err := submounts()
	must.NoError(t, err)
	must.False(t, slices.ContainsFunc(points, func(p string) bool { return below(p, state) }))
}

// reported is a reporter that looks like an exec driver.
type reported struct {
	drivers.DriverPlugin
	drivers.ExecTaskStreamingRawDriver
}

// TestHostWithoutIdmappedMounts has a path on sysfs, which has none.
func TestHostWithoutIdmappedMounts(t *testing.T) {
	const says = `mount /sys/kernel of paths without the owners of its files: mount_setattr: invalid argument: it takes Linux 5.12`
	r := bound(t, &recorder{}, "/etc", "/sys/kernel")
	for sentence, c := range map[string]struct {
		filesystem string
		inner      drivers.HealthState
		want       drivers.Fingerprint
	}{
		"is not healthy":                 {"bind", drivers.HealthStateHealthy, drivers.Fingerprint{Health: drivers.HealthStateUnhealthy, HealthDescription: says}},
		"is with Nomad's own chroot":     {"chroot", drivers.HealthStateHealthy, drivers.Fingerprint{Health: drivers.HealthStateHealthy}},
		"is undetected where Nomad's is": {"bind", drivers.HealthStateUndetected, drivers.Fingerprint{Health: drivers.HealthStateUndetected}},
	} {
		t.Run(sentence, func(t *testing.T) {
			r.Filesystem, r.processDriver = c.filesystem, reported{DriverPlugin: reporter{report: &drivers.Fingerprint{Health: c.inner}}}
			reports, err := r.Fingerprint(context.Background())
			must.NoError(t, err)
			report := <-reports
			must.Eq(t, c.want.Health, report.Health)
			must.StrHasPrefix(t, c.want.HealthDescription, report.HealthDescription)
		})
	}
	r.Filesystem, r.processDriver = "bind", &recorder{}
	_, _, err := r.StartTask(testTask(t, "sh"))
	must.ErrorContains(t, err, says)
}

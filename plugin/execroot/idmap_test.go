package execroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/inode"
	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// TestIDMappedMountsShowWhatEveryoneMayRead reads as root, whom no mode keeps out elsewhere.
func TestIDMappedMountsShowWhatEveryoneMayRead(t *testing.T) {
	need.Root(t)
	host := t.TempDir()
	drivertest.Write(t, host, map[string]string{
		"etc/passwd": "x", "etc/shadow": "x", "etc/group": "x", "etc/ssl/private/key": "x", "etc/link": "->shadow",
		"etc/absolute": "->" + host + "/etc/passwd", "etc/mounted/": "", "etc/other/": "", "etc/user/own": "x"})
	for name, mode := range map[string]os.FileMode{
		"etc": 0o755, "etc/passwd": 0o644, "etc/shadow": 0o640, "etc/group": 0o666,
		"etc/ssl": 0o755, "etc/ssl/private": 0o710, "etc/ssl/private/key": 0o644,
		"etc/mounted": 0o755, "etc/user": 0o755, "etc/user/own": 0o600,
	} {
		must.NoError(t, os.Chmod(filepath.Join(host, name), mode))
	}
	must.NoError(t, os.Chown(host+"/etc/user/own", unmappedID-1, unmappedID-1))
	for dir, fs := range map[string]string{"mounted": "tmpfs", "other": "sysfs"} { // the second has no idmapped mounts
		must.NoError(t, unix.Mount("none", filepath.Join(host, "etc", dir), fs, 0, ""))
		t.Cleanup(func() { must.NoError(t, unix.Unmount(filepath.Join(host, "etc", dir), 0)) })
	}
	drivertest.Write(t, host, map[string]string{"etc/mounted/open": "x", "etc/mounted/closed": "x"})
	must.NoError(t, os.Chmod(host+"/etc/mounted/closed", 0o600))

	m := &idmapMounts{stateDir: t.TempDir(), logger: hclog.NewNullLogger()}
	at, err := m.stage([]string{host + "/etc", host + "/etc/ssl"},
		[]string{"/", host + "/etc/mounted", host + "/etc/other"})
	must.NoError(t, err)
	defer m.remove(at)
	// What a host does while tasks run: a file is renamed over another one, and files come.
	drivertest.Write(t, host, map[string]string{"etc/new": "x", "etc/late": "x", "etc/open": "x"})
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

func TestIDMappedMountsLeaveNothingBehind(t *testing.T) {
	need.Root(t)
	host, state := t.TempDir(), t.TempDir()
	ended := exec.Command("true")
	must.NoError(t, ended.Run())
	dead := filepath.Join(state, fmt.Sprintf("root-%d-1", ended.Process.Pid))
	others := []string{"root-1-1", "root-x", "lock"} // a process that lives, and what is none of it
	for _, dir := range append(others, filepath.Base(dead)) {
		must.NoError(t, os.Mkdir(filepath.Join(state, dir), 0o700))
	}
	must.NoError(t, unix.Mount("none", dead, "tmpfs", 0, ""))
	m := &idmapMounts{stateDir: state, logger: hclog.NewNullLogger()}
	for _, dirs := range [][]string{{host}, {"/sys/kernel"}} {
		at, err := m.stage(dirs, nil)
		must.Eq(t, dirs[0] == host, err == nil)
		if err == nil {
			m.remove(at)
		}
	}
	left, err := os.ReadDir(state)
	must.NoError(t, err)
	must.SliceLen(t, len(others), left)
	for _, entry := range left {
		must.SliceContains(t, others, entry.Name())
	}
	points, err := mountPoints()
	must.NoError(t, err)
	must.False(t, slices.ContainsFunc(points, func(p string) bool { return inode.Within(p, state) }))
}

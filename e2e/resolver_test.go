package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// Most hosts run systemd-resolved, and an exec task gets its two files, each as a mount of its own. A host without it
// gets the files for as long as the tests run, so that every test of exec runs as it would on most hosts.

const (
	resolverDir  = "/run/systemd/resolve"
	resolverText = "nameserver 192.0.2.53 # of nomad-driver-vault's tests\n"
)

var resolverFiles = []string{resolverDir + "/resolv.conf", resolverDir + "/stub-resolv.conf"}

// makeResolver makes the files where root runs the tests and the host does not have them. It returns a function that
// removes what it made.
func makeResolver() (remove func() error, err error) {
	var made []string
	remove = func() (err error) {
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
		return err
	}
	if os.Geteuid() != 0 {
		return remove, nil
	}
	for _, dir := range []string{filepath.Dir(resolverDir), resolverDir} {
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			made = append([]string{dir}, made...)
		case !errors.Is(err, fs.ErrExist):
			return remove, fmt.Errorf("make the files of systemd-resolved: %w", err)
		}
	}
	for _, path := range resolverFiles {
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.WriteFile(path, []byte(resolverText), 0o644); err != nil {
			return remove, fmt.Errorf("make the files of systemd-resolved: %w", err)
		}
		made = append([]string{path}, made...)
	}
	return remove, nil
}

// TestExecTaskWithSystemdResolved: the task reads the files, and nothing of them is in its directory once it has ended.
func TestExecTaskWithSystemdResolved(t *testing.T) {
	t.Parallel()
	s := common(t)
	j := job{Name: "resolved", Driver: "vault-exec"}
	_, alloc := register(t, s, shell(j, stay))
	ctx := within(t, time.Minute)
	must.NoError(t, alloc.Running(ctx))
	for _, path := range resolverFiles {
		host, err := os.ReadFile(path)
		must.NoError(t, err)
		stdout, stderr, _ := execute(t, alloc, j, false, "", "cat "+path)
		must.Eq(t, string(host), stdout, must.Sprint(stderr))
		must.FileExists(t, alloc.Path(j.Name, strings.TrimPrefix(path, "/")), must.Sprint("the mount point"))
	}
	stop(t, ctx, s, alloc, j)
	eventually(t, slack, func() error {
		_, err := os.Lstat(alloc.Path(j.Name, strings.TrimPrefix(resolverDir, "/")))
		if err == nil {
			return errors.New("the mount points are still there")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// TestResolvConfOfExecTasks: as under Nomad's own exec, it is the host's unless the group has a dns block, also after a
// restart by the driver.
func TestResolvConfOfExecTasks(t *testing.T) {
	t.Parallel()
	host, err := os.ReadFile("/etc/resolv.conf")
	must.NoError(t, err)
	const dns = "dns {\n servers = [\"192.0.2.1\", \"192.0.2.2\"]\n searches = [\"example.org\", \"corp.example\"]\n" +
		"options = [\"ndots:2\", \"timeout:1\"]\n }\n"
	const made = "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org corp.example\noptions ndots:2 timeout:1\n"
	for name, c := range map[string]struct{ network, want string }{
		"bridge":         {"mode = \"bridge\"\n", string(host)},
		"bridge-and-dns": {"mode = \"bridge\"\n" + dns, made},
		"host":           {"mode = \"host\"\n", string(host)},
		"host-and-dns":   {"mode = \"host\"\n" + dns, made},
		"servers-alone":  {"mode = \"bridge\"\n dns {\n servers = [\"192.0.2.1\"]\n }\n", "nameserver 192.0.2.1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			ctx := within(t, 2*time.Minute)
			j := job{Name: "resolv-" + name, Driver: "vault-exec", Group: "network {\n" + c.network + "}"}
			put(t, s, j, map[string]any{"color": "green"})
			j.Config = file("local/color", inJob(j, "color"), onRestart)
			_, alloc := register(t, s, shell(j, stay))
			must.NoError(t, alloc.Running(ctx))
			resolver := func() string {
				stdout, stderr, code := execute(t, alloc, j, false, "", "cat /etc/resolv.conf")
				must.Eq(t, 0, code, must.Sprint(stderr))
				return stdout
			}
			must.Eq(t, c.want, resolver())
			put(t, s, j, map[string]any{"color": "red"})
			_, err := alloc.Event(ctx, j.Name, "restarted by "+j.Driver)
			must.NoError(t, err)
			must.Eq(t, c.want, resolver())
		})
	}
}

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

// Package statetest helps tests with state directories.
package statetest

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

// Memory returns a directory on a tmpfs, as state_dir has to be.
func Memory(t testing.TB) string {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		need.Skip(t, "a tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "nomad-driver-vault-test-")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return dir
}

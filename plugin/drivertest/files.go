package drivertest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Write makes files, with their directories, from their paths and contents. A path that ends in / is a directory, a
// content that starts with -> a symbolic link, and | alone a pipe.
func Write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		target, link := strings.CutPrefix(content, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			must.NoError(t, os.MkdirAll(path, 0o755))
		case link:
			must.NoError(t, os.Symlink(target, path))
		case content == "|":
			must.NoError(t, unix.Mkfifo(path, 0o755))
		default:
			must.NoError(t, os.WriteFile(path, []byte(content), 0o755))
		}
	}
}

// Read returns what a file holds.
func Read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	must.NoError(t, err)
	return string(content)
}

// Allocation returns a task with that command in an allocation with the directories that Nomad makes. It cannot be
// started.
func Allocation(t *testing.T, command string) *drivers.TaskConfig {
	t.Helper()
	cfg := &drivers.TaskConfig{Name: "app", AllocDir: t.TempDir(), Env: map[string]string{"A": "task"}}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(map[string]any{"command": command, "args": []string{"-x"}}))
	Write(t, cfg.AllocDir, map[string]string{"alloc/data/": "", "alloc/logs/": "", "app/local/": "", "app/secrets/": ""})
	return cfg
}

// Canary is a file of root's that nobody else may read, alone in its directory.
type Canary struct{ Path string }

// CanarySays is what a Canary holds.
const CanarySays = "of root"

// NewCanary returns a Canary outside of any task's directories.
func NewCanary(t *testing.T) Canary {
	t.Helper()
	c := Canary{filepath.Join(t.TempDir(), "canary")}
	must.NoError(t, os.WriteFile(c.Path, []byte(CanarySays), 0o600))
	return c
}

// Lives fails the test unless the file is what it was and nothing came beside it.
func (c Canary) Lives(t *testing.T) {
	t.Helper()
	must.Eq(t, CanarySays, Read(t, c.Path))
	info, err := os.Lstat(c.Path)
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode())
	must.Zero(t, info.Sys().(*syscall.Stat_t).Uid)
	beside, err := os.ReadDir(filepath.Dir(c.Path))
	must.NoError(t, err)
	must.SliceLen(t, 1, beside)
}

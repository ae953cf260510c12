package wrapped

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-vault/internal/inode"
)

// guard takes from a task what root opens by name in its directories. It makes them directories in which only root
// renames and removes what root has put there, and removes what a task, or a user of the host, has put in the place
// of a file that Nomad opens there as root, by path and through any link: the executor opens its log, a dns block
// writes a resolv.conf, the container library makes a directory of its own, and the log collector opens its files
// (drivers/exec/driver.go, drivers/shared/resolvconf, drivers/shared/executor, client/lib/logrotator).
//
// It is for the moment before a start, when no process of the task runs. Nomad opens the directories to everyone
// again when the agent restarts (client/allocdir, Build).
func guard(cfg *drivers.TaskConfig) error {
	root, err := os.OpenRoot(cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("open the allocation's directory: %w", err)
	}
	defer root.Close()
	const sticky = os.ModeSticky | 0o777
	for _, dir := range []struct {
		name string
		mode os.FileMode
	}{
		{cfg.Name, sticky},
		{filepath.Join(cfg.Name, "local"), 0o777}, // its owner may rename it, whatever directory it is in
		{"alloc", sticky}, {"alloc/logs", 0o755}, {"alloc/container", 0o700},
	} {
		if err := ownDirectory(root, dir.name, dir.mode); err != nil {
			return fmt.Errorf("guard %s of the allocation: %w", dir.name, err)
		}
	}
	files := []string{"executor.out"}
	if cfg.DNS != nil {
		files = append(files, "resolv.conf")
	}
	for _, name := range files {
		if err := ownFile(root, filepath.Join(cfg.Name, name)); err != nil {
			return fmt.Errorf("guard %s of the task: %w", name, err)
		}
	}
	return nil
}

// ownDirectory makes the name a directory of root's with that mode.
func ownDirectory(root *os.Root, name string, mode os.FileMode) error {
	info, err := root.Lstat(name)
	if err == nil && !info.IsDir() {
		err = root.Remove(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, info, err := inode.OpenName(root, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if !info.IsDir() {
		return syscall.ENOTDIR
	}
	if err := os.Chown(inode.Path(dir), os.Geteuid(), os.Getegid()); err != nil {
		return err
	}
	return os.Chmod(inode.Path(dir), mode)
}

// ownFile makes the name a regular file of root's that has no other name.
func ownFile(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err == nil && isOwn(info) {
		return nil
	}
	if err == nil {
		err = root.RemoveAll(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

// isOwn reports whether it is a regular file of this process's user that has no other name.
func isOwn(info fs.FileInfo) bool {
	stat := info.Sys().(*syscall.Stat_t)
	return info.Mode().IsRegular() && stat.Nlink == 1 && int(stat.Uid) == os.Geteuid()
}

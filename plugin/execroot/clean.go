package execroot

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RemoveMountPoints removes from the directory of a task that has ended what was made there to mount the host's paths
// on: empty files, empty directories, and links that the host has too. Whatever has something in it is the job's and
// stays.
func (b *Builder) RemoveMountPoints(taskDir string) error {
	root, err := os.OpenRoot(taskDir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, path := range b.config.Paths {
		removeEmpty(root, path)
		for above := filepath.Dir(path); above != "/" && root.Remove(above[1:]) == nil; {
			above = filepath.Dir(above)
		}
	}
	return nil
}

// removeEmpty removes what is empty below a path that the host has too, and links that are the host's.
func removeEmpty(root *os.Root, path string) {
	if _, err := os.Lstat(path); err != nil {
		return
	}
	info, err := root.Lstat(path[1:])
	switch {
	case err != nil:
		return
	case info.IsDir():
		for _, name := range entryNames(root, path[1:], -1) {
			removeEmpty(root, filepath.Join(path, name))
		}
	case info.Mode()&os.ModeSymlink != 0:
		ours, _ := root.Readlink(path[1:])
		if theirs, err := os.Readlink(path); err != nil || theirs != ours {
			return
		}
	case !info.Mode().IsRegular() || info.Size() > 0:
		return
	}
	_ = root.Remove(path[1:]) // fails where something is left in it
}

// entryNames returns the names of most entries of a directory, of all where most is negative, and none where something
// else has its name: a task can have made a pipe there.
func entryNames(root *os.Root, dir string, most int) []string {
	d, err := root.OpenFile(dir, unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer d.Close()
	all, _ := d.Readdirnames(most)
	return all
}

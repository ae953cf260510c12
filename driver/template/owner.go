package template

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"nomad-driver-vault/internal/inode"
)

// Own gives files that Write has made their owners, when these were not known
// before. A file stays the same inode, since a container may have it mounted.
// What the task has put in its place is left alone.
func Own(root *os.Root, files []File) error {
	for _, f := range files {
		if err := own(root, f); err != nil {
			return fmt.Errorf("destination %q cannot be given to user %d: %w", cmp.Or(f.Name, f.Path), f.UID, inode.Cause(err))
		}
	}
	return nil
}

func own(root *os.Root, f File) error {
	dir, err := openDir(root, path.Dir(f.Path), false)
	if err != nil {
		return nil //nolint:nilerr // the task has taken it away
	}
	defer dir.Close()
	file, info, err := inode.Open(dir, path.Base(f.Path))
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	defer file.Close()
	f.UID, f.GID = owner(f)
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink != 1 || int(st.Uid) == f.UID && int(st.Gid) == f.GID {
		return nil
	}
	return file.Chown(f.UID, f.GID)
}

// Readable reports whether a user with those groups may read the file.
func (f File) Readable(uid int, gids []int) bool {
	f.UID, f.GID = owner(f)
	class := fs.FileMode(0o004)
	switch {
	case uid == 0:
		return true
	case uid == f.UID:
		class = 0o400
	case slices.Contains(gids, f.GID):
		class = 0o040
	}
	return f.Perm&class != 0
}

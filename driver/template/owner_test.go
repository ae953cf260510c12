package template

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
)

func TestOwnKeepsTheFileAndTouchesNoOther(t *testing.T) {
	need.Root(t)
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "of-root")
	must.NoError(t, os.WriteFile(elsewhere, nil, 0o600))
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	defer root.Close()
	files := []File{{Path: "mine", Data: []byte("x"), Perm: 0o600, UID: -1, GID: -1},
		{Path: "link", UID: 7}, {Path: "other-name", UID: 7}, {Path: "gone", UID: 7}, {Path: "no/dir", UID: 7}}
	_, err = Write(root, "app", files[:1])
	must.NoError(t, err)
	must.NoError(t, os.Symlink(elsewhere, filepath.Join(dir, "link")))
	must.NoError(t, os.Link(elsewhere, filepath.Join(dir, "other-name")))
	before, err := root.Stat("mine")
	must.NoError(t, err)

	files[0].UID, files[0].GID = 7, 8
	must.NoError(t, Own(root, files))
	info, err := root.Stat("mine")
	must.NoError(t, err)
	must.True(t, os.SameFile(before, info))
	must.Eq(t, 0o600, info.Mode())
	must.Eq(t, [2]uint32{7, 8}, [2]uint32{info.Sys().(*syscall.Stat_t).Uid, info.Sys().(*syscall.Stat_t).Gid})
	info, err = os.Stat(elsewhere)
	must.NoError(t, err)
	must.Zero(t, info.Sys().(*syscall.Stat_t).Uid)
}

func TestReadable(t *testing.T) {
	for sentence, c := range map[string]struct {
		f        File
		uid, gid int
		want     bool
	}{
		"root reads all":        {File{UID: 7}, 0, 0, true},
		"its owner":             {File{UID: 7, Perm: 0o400}, 7, 7, true},
		"an owner who may not":  {File{UID: 7, Perm: 0o044}, 7, 7, false},
		"one of its group":      {File{GID: 8, Perm: 0o640}, 7, 8, true},
		"a group that may not":  {File{GID: 8, Perm: 0o604}, 7, 8, false},
		"anybody":               {File{Perm: 0o644}, 7, 7, true},
		"nobody else":           {File{Perm: 0o640}, 7, 7, false},
		"of whom root is meant": {File{UID: -1, GID: -1, Perm: 0o600}, 7, 7, false},
	} {
		t.Run(sentence, func(t *testing.T) { must.Eq(t, c.want, c.f.Readable(c.uid, []int{c.gid})) })
	}
}

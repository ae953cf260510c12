package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// TestLogCollectorWritesWhereTheTaskPutsNoLink has each task put a link in the place of its next log file, and write
// until Nomad's log collector, which is root and follows links, opens that.
func TestLogCollectorWritesWhereTheTaskPutsNoLink(t *testing.T) {
	t.Parallel()
	for driver, as := range map[string]string{"vault-exec": "", "vault-docker": "", "vault-raw_exec": `user = "nobody"`} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := common(t)
			target := filepath.Join(t.TempDir(), "written")
			j := job{Name: "log-rotation-" + driver[len("vault-"):], Driver: driver,
				Task: as + "\n logs {\n max_files = 3\n max_file_size = 1\n }"}
			if j.RawExec() {
				j.Config = `work_dir = "/"`
			}
			_, alloc := register(t, s, shell(j, `ln -s `+target+` $NOMAD_ALLOC_DIR/logs/`+j.Name+`.stdout.1
echo tried >&2
head -c 2000000 /dev/zero | tr '\0' x | fold -w 99
`+stay))
			ctx := within(t, 2*time.Minute)
			must.NoError(t, alloc.Running(ctx))
			_, err := alloc.Log(ctx, j.Name, "stderr", "(?m)^tried", 1)
			must.NoError(t, err)
			next := alloc.Path("alloc", "logs/"+j.Name+".stdout.1")
			must.NoError(t, stack.Eventually(ctx, func() error {
				if info, err := os.Stat(next); err != nil || info.Size() == 0 { // where it is a link, of the file that it leads to
					return errors.Join(err, errors.New("the next log file is empty"))
				}
				return nil
			}))
			_, err = os.Lstat(target)
			must.ErrorIs(t, err, os.ErrNotExist)
			info, err := os.Lstat(next)
			must.NoError(t, err)
			must.True(t, info.Mode().IsRegular())
		})
	}
}

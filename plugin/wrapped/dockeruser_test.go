package wrapped

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
	"nomad-driver-vault/plugin/drivertest"
)

// TestDockerTellsWhoAContainerRunsAs before its process starts: the process finds what was written then.
func TestDockerTellsWhoAContainerRunsAs(t *testing.T) {
	need.Root(t)
	s := drivertest.RequireDocker(t)
	for sentence, c := range map[string]struct {
		image, task string
		groups      []string
		uid         int
		gids        []int
	}{
		"nobody names one":         {uid: 0, gids: []int{0}},
		"the image, by a number":   {image: "1000", uid: 1000, gids: []int{0}},
		"and a group":              {image: "1000:1001", uid: 1000, gids: []int{1001}},
		"the image, by a name":     {image: "nobody", uid: 65534, gids: []int{65534}},
		"the task, over the image": {image: "1000", task: "nobody:7", uid: 65534, gids: []int{7}},
		"with more groups":         {image: "1000", groups: []string{"8"}, uid: 1000, gids: []int{0, 8}},
	} {
		t.Run(sentence, func(t *testing.T) {
			h := serve(t, "docker", "")
			cfg := drivertest.Shell(t, h, "docker", "test -O /local/told")
			cfg.User = c.task
			set := map[string]any{"group_add": c.groups}
			if c.image != "" {
				image, err := s.ImageWithUser(t.Context(), c.image)
				must.NoError(t, err)
				set["image"] = image
			}
			drivertest.SetOptions(t, cfg, set)
			calls, told := 0, filepath.Join(cfg.TaskDir().LocalDir, "told")
			_, _, err := h.Impl().(*dockerDriver).StartTaskAs(cfg, func(uid int, gids []int) {
				calls++
				must.Eq(t, c.uid, uid)
				must.Eq(t, c.gids, gids)
				must.NoError(t, os.WriteFile(told, nil, 0o600))
				must.NoError(t, os.Chown(told, uid, gids[0]))
			})
			must.NoError(t, err)
			must.Zero(t, (<-drivertest.Result(t, h, cfg)).ExitCode)
			must.NoError(t, h.DestroyTask(cfg.ID, true))
			must.One(t, calls)
		})
	}
}

package execroot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
)

// directories returns those of the operator's paths that are directories, without links in their paths.
func directories(paths []string) []string {
	var all []string
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			continue
		}
		if info, err := os.Stat(real); err == nil && info.IsDir() {
			all = append(all, real)
		}
	}
	return all
}

// mountPoints returns the host's mount points, parents before what is mounted below them.
func mountPoints() ([]string, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var all []string
	for _, m := range mounts {
		all = append(all, m.Mountpoint)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

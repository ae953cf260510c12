package wrapped

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/moby/sys/user"
)

// StartTaskAs is StartTask, and calls runsAs before the process starts: with the number of the user that the task or
// its image names and those of its groups, as the container has them. The first group is the user's own.
func (d *dockerDriver) StartTaskAs(cfg *drivers.TaskConfig, runsAs func(uid int, gids []int)) (
	*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	name := cfg.Name + "-" + cfg.AllocID // as Nomad's driver names the container
	d.asking.Store(name, runsAs)
	defer d.asking.Delete(name)
	handle, network, err := d.StartTask(cfg)
	if _, unanswered := d.asking.Load(name); unanswered && err == nil { // late is better than never
		if status, err := d.InspectTask(cfg.ID); err == nil {
			d.answer(context.Background(), status.DriverAttributes["container_id"])
		}
	}
	return handle, network, err
}

// created waits for the line that Nomad's driver logs between the creation of a container and its start
// (drivers/docker/driver.go, StartTask): it has no other sign of it. Only then the engine has the image, and files can
// be given to the user whom that names, before the process looks for them.
func (d *dockerDriver) created(ctx context.Context, msg string, args []any) {
	if msg != "created container" || len(args) < 2 || args[0] != "container_id" {
		return
	}
	d.answer(ctx, fmt.Sprint(args[1]))
}

// answer calls what StartTaskAs was given for a container.
func (d *dockerDriver) answer(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	info, err := d.engine.ContainerInspect(ctx, id)
	if err != nil {
		d.logger.Warn("cannot find out who a container runs as", "container_id", id, "error", err)
		return
	}
	runsAs, asked := d.asking.LoadAndDelete(strings.TrimPrefix(info.Name, "/"))
	if !asked {
		return
	}
	uid, gids, err := d.userOf(ctx, info)
	if err != nil {
		d.logger.Warn("cannot find out who a container runs as", "container_id", id, "error", err)
		return
	}
	runsAs.(func(int, []int))(uid, gids)
}

// userOf returns the numbers of the user and of the groups of a container, as the engine finds them.
func (d *dockerDriver) userOf(ctx context.Context, c container.InspectResponse) (uid int, gids []int, err error) {
	if c.Config.User == "" || c.Config.User == "0" || c.Config.User == "root" {
		return 0, []int{0}, nil
	}
	passwd, err := d.file(ctx, c.ID, "/etc/passwd")
	if err != nil {
		return 0, nil, err
	}
	group, err := d.file(ctx, c.ID, "/etc/group")
	if err != nil {
		return 0, nil, err
	}
	u, err := user.GetExecUser(c.Config.User, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return 0, nil, fmt.Errorf("find user %q: %w", c.Config.User, err)
	}
	more, err := user.GetAdditionalGroups(c.HostConfig.GroupAdd, bytes.NewReader(group))
	if err != nil {
		return 0, nil, fmt.Errorf("find groups of user %q: %w", c.Config.User, err)
	}
	return u.Uid, append(append([]int{u.Gid}, u.Sgids...), more...), nil
}

// file returns a file of a container, empty where it is not there.
func (d *dockerDriver) file(ctx context.Context, id, path string) ([]byte, error) {
	const most = 1 << 20
	packed, _, err := d.engine.CopyFromContainer(ctx, id, path)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer packed.Close()
	files := tar.NewReader(packed)
	if header, err := files.Next(); err != nil || header.Typeflag != tar.TypeReg {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(files, most))
}

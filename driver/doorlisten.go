package driver

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"path"
	"strconv"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/render"
)

// newDoorSecrets makes what clients show of the doors that are reached over TCP.
func newDoorSecrets(conf *config.Task) map[string]string {
	secrets := map[string]string{}
	for name, d := range conf.Doors {
		if d.Listen != 0 {
			secrets[name] = "~" + rand.Text()
		}
	}
	return secrets
}

// listen says where the task finds a door.
func (d *doors) listen(name string) (process.Listen, error) {
	l := process.Listen{Socket: d.socket(name), Port: d.conf.Doors[name].Listen}
	if l.Port == 0 {
		return l, nil
	}
	var theirs struct {
		NetworkMode string `codec:"network_mode"` // of docker
	}
	if err := d.cfg.DecodeDriverConfig(&theirs); err != nil {
		return l, fmt.Errorf("decode config block: %w", err)
	}
	n := d.cfg.NetworkIsolation
	if err := d.conf.Doors[name].CheckListen(n != nil && n.Path != "", theirs.NetworkMode); err != nil {
		return l, err
	}
	l.Namespace = n.Path
	return l, nil
}

// socket returns the socket of a door. It is the task's user's, as far as that is a user of this host; the users of
// an image are not known here, and then everybody who can reach the task's directory may use it. When there is a
// container it is known whom its image names. The socket is not given to that user: a process that starts as root may
// become another, and with userns-remap the numbers are others on the host.
//
// The mode is the whole bar. That the process which connects is in the task's cgroup is not demanded (door.Peers):
// where the mode is 0600, only processes of the same user get as far, and these can read the memory of the task's own.
// Where it is 0666, the wrapped driver is docker, whose cgroup is not known before there is a container.
func (d *doors) socket(name string) *process.Socket {
	s := &process.Socket{Dir: d.cfg.AllocDir, Name: path.Join(d.cfg.Name, render.DoorSocket(name)), Mode: 0o600}
	if port, ok := d.conf.PostgresPorts()[name]; ok {
		s.Link = path.Base(render.PostgresSocket(port))
	}
	user, _, _ := strings.Cut(cmp.Or(d.cfg.User, d.op.DefaultUser), ":")
	var err error
	if s.UID, s.GID, err = config.LookupUser(user); err != nil || d.op.ImageUser && !isNumber(user) {
		s.UID, s.GID, s.Mode = -1, -1, 0o666
	}
	return s
}

func isNumber(text string) bool {
	_, err := strconv.Atoi(text)
	return err == nil
}

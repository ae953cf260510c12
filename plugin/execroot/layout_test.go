package execroot

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/plugin/drivertest"
)

// paths lists where mounts go, relative to a host directory where they are below it.
func paths(mounts []*drivers.MountConfig, host string) []string {
	var all []string
	for _, m := range mounts {
		all = append(all, strings.TrimPrefix(m.TaskPath, host))
	}
	return all
}

func TestLayout(t *testing.T) {
	etc := map[string]string{
		"etc/passwd": "root", "etc/ssl/ca.pem": "ca", "etc/localtime": "->../usr/zone", "etc/resolv.conf": "->/run/none",
	}
	single := []string{"/etc/passwd", "/etc/ssl"}
	for sentence, c := range map[string]struct {
		claims []string
		task   map[string]string // what is in the task's directory below the host directory's name
		want   []string
		link   string
	}{
		"a directory is one mount":                                {want: []string{"/etc"}},
		"a volume on a directory of the host leaves it one mount": {claims: []string{"/etc/ssl"}, want: []string{"/etc"}},
		"a volume over all of it leaves it one mount":             {claims: []string{"/etc"}, want: []string{"/etc"}},
		"a volume elsewhere leaves it one mount":                  {claims: []string{"/etcetera/x"}, want: []string{"/etc"}},
		"a volume where the host has nothing finds a place": {
			claims: []string{"/etc/app"}, want: single, link: "../usr/zone",
		},
		"so does one further down": {
			claims: []string{"/etc/ssl/app"}, want: []string{"/etc/passwd", "/etc/ssl/ca.pem"},
		},
		"a dns block replaces a link that leads nowhere": {claims: []string{"/etc/resolv.conf"}, want: single},
		"a file of the job's wins": {
			task: map[string]string{"etc/passwd": "mine"}, want: single[1:],
		},
		"a file of the job's has the host's beside it": {
			task: map[string]string{"etc/app.conf": "mine"}, want: single,
		},
		"a file of the job's replaces a directory": {
			task: map[string]string{"etc/ssl": "mine"}, want: single[:1],
		},
		"a pipe of the task's in the place of all of it wins": {task: map[string]string{"etc": "|"}},
		"so does a link": {task: map[string]string{"etc": "->/local"}},
		"a pipe of the task's wins in the place of a directory": {
			task: map[string]string{"etc/ssl": "|"}, want: single[:1],
		},
		"a mount point of an earlier start is not the job's": {
			task: map[string]string{"etc/": ""}, want: []string{"/etc"},
		},
		"nor are those of a directory that was mounted piece-wise": {
			task: map[string]string{"etc/passwd": "", "etc/ssl/": ""}, want: single,
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			host, dir := t.TempDir(), t.TempDir()
			drivertest.Write(t, host, etc)
			socket, err := net.Listen("unix", host+"/etc/socket")
			must.NoError(t, err)
			defer socket.Close()
			drivertest.Write(t, dir+host, c.task)
			for i, claim := range c.claims {
				c.claims[i] = host + claim
			}
			root, err := os.OpenRoot(dir)
			must.NoError(t, err)
			l := &layout{root: root, visible: []string{host + "/etc"}, claims: c.claims}
			must.NoError(t, l.addPath(host+"/etc"))
			must.Eq(t, c.want, paths(l.mounts, host))
			if c.link != "" {
				link, err := root.Readlink(host[1:] + "/etc/localtime")
				must.NoError(t, err)
				must.Eq(t, c.link, link)
			}
			_, err = root.Lstat(host[1:] + "/etc/resolv.conf")
			must.Eq(t, slices.Contains(c.claims, host+"/etc/resolv.conf") || len(c.want) == 0 || c.want[0] == "/etc", err != nil)
		})
	}
}

// One destination in a directory such as /usr/share/doc, or a file of the job's there, is not to cost every task on
// the node its start.
func TestLayoutHasABoundOnMounts(t *testing.T) {
	for sentence, c := range map[string]struct {
		claims []string
		task   map[string]string
		says   string
	}{
		"a volume": {
			claims: []string{"/usr/doc/mine"},
			says:   `destination "HOST/usr/doc/mine" would take a mount for each of the 1001 entries of HOST/usr/doc`,
		},
		"a file of the job": {
			task: map[string]string{"usr/doc/mine": "x"},
			says: `what the job has in "HOST/usr/doc" of its own directory would take`,
		},
		"nothing": {},
	} {
		t.Run(sentence, func(t *testing.T) {
			host, dir := t.TempDir(), t.TempDir()
			for i := range 1001 {
				drivertest.Write(t, host, map[string]string{fmt.Sprintf("usr/doc/%d", i): "x"})
			}
			drivertest.Write(t, dir+host, c.task)
			root, err := os.OpenRoot(dir)
			must.NoError(t, err)
			l := &layout{root: root, visible: []string{host + "/usr"}}
			for _, claim := range c.claims {
				l.claims = append(l.claims, host+claim)
			}
			if err = l.addPath(host + "/usr"); c.says == "" {
				must.NoError(t, err)
				must.SliceLen(t, 1, l.mounts)
			} else {
				must.ErrorContains(t, err, strings.ReplaceAll(c.says, "HOST", host))
			}
		})
	}
}

func TestLayoutShowsWhatIsMountedBelow(t *testing.T) {
	host := t.TempDir()
	drivertest.Write(t, host, map[string]string{
		"usr/bin/": "", "usr/share/": "", "bin": "->usr/bin", "usr/hosts": "h", "usr/secret": "s"})
	root, err := os.OpenRoot(t.TempDir())
	must.NoError(t, err)
	must.NoError(t, os.Chmod(host+"/usr/secret", 0o640))
	l := &layout{root: root, staged: "/shown", hostMounts: []string{
		host, host + "/usr", host + "/usr/bin", host + "/usr/hosts", host + "/usr/secret", host + "/usrlocal"}}
	must.NoError(t, l.addPath(host+"/usr"))
	must.NoError(t, l.addPath(host+"/bin"))
	must.Eq(t, []string{"/usr", "/usr/bin", "/usr/hosts", "/usr/secret", "/bin"}, paths(l.mounts, host))
	var from []string
	for _, m := range l.mounts {
		from = append(from, strings.Replace(m.HostPath, host, "HOST", 1))
	}
	want := []string{
		"/shownHOST/usr", "/shownHOST/usr/bin", "HOST/usr/hosts", "/shownHOST/usr/secret", "/shownHOST/usr/bin"}
	must.Eq(t, want, from,
		must.Sprint("a file on a mount of its own is the only thing that is not taken from where it is idmapped"))
}

func TestLayoutDoesNotFollowTheTasksLinks(t *testing.T) {
	host, dir, outside := t.TempDir(), t.TempDir(), t.TempDir()
	drivertest.Write(t, host, map[string]string{"etc/a": "->b"})
	drivertest.Write(t, outside, map[string]string{"etc/x": "not ours"})
	must.NoError(t, os.MkdirAll(dir+filepath.Dir(host), 0o755))
	must.NoError(t, os.Symlink(outside, dir+host))
	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	must.Error(t, (&layout{root: root, claims: []string{host + "/etc/new"}}).addPath(host+"/etc"))
	entries, err := os.ReadDir(outside + "/etc")
	must.NoError(t, err)
	must.Len(t, 1, entries)
}

func TestMountPointsAreInOrder(t *testing.T) {
	all, err := mountPoints()
	must.NoError(t, err)
	must.SliceContains(t, all, "/proc")
	must.True(t, slices.IsSorted(all))
}

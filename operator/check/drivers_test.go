package check

import (
	"os"
	"testing"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

func TestWhatTheHostsUsersAndTasksReachIsSaid(t *testing.T) {
	open, err := os.MkdirTemp("/tmp", "data-dir-") // which everyone enters
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(open)) })
	must.NoError(t, os.Chmod(open, 0o755))
	must.NoError(t, os.Mkdir(open+"/alloc", 0o755))
	chroots := []*nomad.NodeListStub{{Name: "one", Drivers: map[string]*nomad.DriverInfo{
		"vault-exec": {Detected: true, Attributes: map[string]string{"driver.vault-exec.filesystem": "chroot"}}}}}
	for sentence, c := range map[string]struct {
		dir   string
		mode  os.FileMode
		about taskDriver
		says  []string
	}{
		"a data_dir that everyone enters": {dir: open + "/alloc", mode: 0o755,
			says: []string{"every user of this host can enter " + open + "/alloc"}},
		"one in a directory that nobody does": {dir: open + "/alloc", mode: 0o700},
		"none":                                {},
		"a chroot on clients": {about: taskDriver{name: "vault-exec", wraps: "exec"},
			says: []string{`with filesystem = "chroot" on one, tasks can write`}},
		"a chroot here": {about: taskDriver{name: "vault-exec", wraps: "exec", local: true,
			block: map[string]any{"filesystem": "chroot"}},
			says: []string{`with filesystem = "chroot" on this client`}},
		"the built-in's name": {about: taskDriver{name: "exec", wraps: "exec", local: true},
			says: []string{`on this client`}},
		"binds here, a chroot elsewhere":  {about: taskDriver{name: "vault-exec", wraps: "exec", local: true}},
		"a driver without a root of ours": {about: taskDriver{name: "vault-docker", wraps: "docker"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			if c.mode != 0 {
				must.NoError(t, os.Chmod(open, c.mode))
			}
			check := &checker{clients: chroots}
			check.checkTaskDirs(c.dir)
			check.checkChroot("task", &c.about)
			must.SliceLen(t, len(c.says), check.findings, must.Sprint(check.findings))
			for i, says := range c.says {
				must.Eq(t, "warning", check.findings[i].Status)
				must.StrContains(t, check.findings[i].Message, says)
				must.StrContains(t, check.findings[i].Fix, map[bool]string{true: "chmod 0700", false: `"bind"`}[c.mode != 0])
			}
		})
	}
}

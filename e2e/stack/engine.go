package stack

import (
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// startEngine makes sure of Docker, where it is installed.
func (s *Stack) startEngine(ctx context.Context) error {
	if err := s.startDocker(ctx); err != nil {
		s.options.Log("no Docker here: %v", err)
		return nil
	}
	s.Docker = true
	return s.importImages(ctx)
}

// startDocker starts the engine where it is installed but does not run; s.docker then says that it is ours to stop.
func (s *Stack) startDocker(ctx context.Context) error {
	if dockerAnswers(ctx) {
		return nil
	}
	dockerd, err := exec.LookPath("dockerd")
	if err != nil {
		return fmt.Errorf("start docker: %w", err)
	}
	engine := &Process{Name: "dockerd", LogFile: s.path("dockerd.log"), quit: syscall.SIGTERM}
	if err := engine.launch(exec.Command(dockerd)); err != nil {
		return err
	}
	s.docker = engine
	return engine.await(ctx, func() error {
		_, err := docker(ctx, http.MethodGet, "/info", nil)
		return err
	})
}

// importImages makes Image of the machine's busybox, and of that the one whose container holds a bridge network open,
// unless the engine has them. Several stacks may run on one machine: each holds a shared lock while it needs the
// images, and the last one to leave removes them.
func (s *Stack) importImages(ctx context.Context) error {
	lock, err := lockImage(syscall.LOCK_SH)
	if err != nil {
		return err
	}
	s.imageLock = lock
	root, err := pack(os.DirFS(s.path("root")))
	if err != nil {
		return err
	}
	return errors.Join(importImage(ctx, Image, root), importImage(ctx, pauseImage, root, `CMD ["sleep", "infinity"]`))
}

// makeRoot makes the smallest root file system that runs a shell: busybox, a link for each of its applets, and two
// users.
func (s *Stack) makeRoot(ctx context.Context) error {
	busybox, err := staticBusybox()
	if err != nil {
		return err
	}
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("make root file system: %w", err)
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets of busybox: %w", err)
	}
	root := s.path("root")
	err = errors.Join(
		os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.MkdirAll(filepath.Join(root, "etc"), 0o755),
		os.WriteFile(filepath.Join(root, "bin", "busybox"), binary, 0o755),
		os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte(passwd), 0o644))
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			err = errors.Join(err, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
		}
	}
	if err != nil {
		return fmt.Errorf("make root file system: %w", err)
	}
	return nil
}

// passwd has the two users that jobs on Docker's own busybox image name most.
const passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"

// staticBusybox finds a busybox that runs without any library beside it.
func staticBusybox() (string, error) {
	found, _ := exec.LookPath("busybox")
	for _, path := range slices.Compact([]string{"/bin/busybox", found}) {
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			return path, nil
		}
	}
	return "", errors.New("find busybox: no static one on this machine (Debian's package busybox-static)")
}

// StartRegistry starts a registry; its Close ends it. The image has the files of Image.
func (s *Stack) StartRegistry(user, password string) (*Registry, error) {
	return newRegistry(s.Dir, os.DirFS(s.path("root")), user, password)
}

// ImageWithUser makes an image with the files of Image, whose processes run as that user. Close removes it.
func (s *Stack) ImageWithUser(ctx context.Context, user string) (name string, err error) {
	root, err := pack(os.DirFS(s.path("root")))
	if err != nil {
		return "", err
	}
	name = "user-" + strings.ToLower(rand.Text()) + ":1"
	return name, importImage(ctx, name, root, "USER "+user, "LABEL "+registryLabel+"="+s.Dir)
}

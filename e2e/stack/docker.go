package stack

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Image is what the examples and tests run under Docker. Where the engine does not have it, one is made of this
// machine's static busybox, since a test asks no registry, and removed again by Close.
const Image = "busybox:1.36"

// pauseImage is for the container that Nomad's docker driver has hold the network of a group in bridge mode open.
const pauseImage = "busybox:1.36-pause"

// imageLabel tells the images that we made from those that were there.
const imageLabel = "nomad-driver-vault.e2e"

const dockerSocket = "/var/run/docker.sock"

var dockerHTTP = &http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", dockerSocket)
	},
	DisableKeepAlives: true,
}}

// docker asks the engine (Docker Engine API) and returns the body of a successful answer.
func docker(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := dockerHTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask docker: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask docker: %w", err)
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("ask docker: %s %s: %s: %s", method, path, resp.Status, b)
	}
	return b, nil
}

func dockerAnswers(ctx context.Context) bool {
	_, err := docker(ctx, http.MethodGet, "/info", nil)
	return err == nil
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
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	if err := errors.Join(w.AddFS(os.DirFS(s.path("root"))), w.Close()); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	return errors.Join(importImage(ctx, Image, root.Bytes()), importImage(ctx, pauseImage, root.Bytes(),
		`CMD ["sleep", "infinity"]`))
}

func importImage(ctx context.Context, image string, root []byte, changes ...string) error {
	if _, err := docker(ctx, http.MethodGet, "/images/"+image+"/json", nil); err == nil {
		return nil
	}
	repo, tag, _ := strings.Cut(image, ":")
	q := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": append(changes, "LABEL "+imageLabel+"=1",
		`ENV PATH=/bin`)}
	if _, err := docker(ctx, http.MethodPost, "/images/create?"+q.Encode(), bytes.NewReader(root)); err != nil {
		return fmt.Errorf("import %s: %w", image, err)
	}
	return nil
}

func lockImage(how int) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), imageLabel+".lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock image: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), how); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock image: %w", err)
	}
	return lock, nil
}

// removeImages undoes importImages, unless another stack still needs the images.
func removeImages(ctx context.Context) error {
	lock, err := lockImage(syscall.LOCK_EX | syscall.LOCK_NB)
	if err != nil {
		return nil
	}
	defer lock.Close()
	return errors.Join(removeImage(ctx, Image), removeImage(ctx, pauseImage))
}

func removeImage(ctx context.Context, name string) error {
	b, err := docker(ctx, http.MethodGet, "/images/"+name+"/json", nil)
	var image struct {
		Config struct{ Labels map[string]string }
	}
	if err != nil || json.Unmarshal(b, &image) != nil || image.Config.Labels[imageLabel] == "" {
		return nil
	}
	_, err = docker(ctx, http.MethodDelete, "/images/"+name+"?force=true", nil)
	return err
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

// removeContainers removes every container of the agent whose folder is dir: those of its allocations, by the label
// that Nomad's docker driver gives each of them, and those with a mount from below the folder, whose allocation may be
// gone.
func removeContainers(ctx context.Context, dir string, allocs []string) error {
	const label = "com.hashicorp.nomad.alloc_id"
	b, err := docker(ctx, http.MethodGet, "/containers/json?all=true&filters="+url.QueryEscape(`{"label":["`+label+`"]}`),
		nil)
	if err != nil {
		return err
	}
	var containers []struct {
		ID     string
		Labels map[string]string
		Mounts []struct{ Source string }
	}
	if err := json.Unmarshal(b, &containers); err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers {
		ours := slices.Contains(allocs, c.Labels[label])
		for _, mount := range c.Mounts {
			ours = ours || strings.HasPrefix(mount.Source, dir+"/")
		}
		if !ours {
			continue
		}
		if _, err := docker(ctx, http.MethodDelete, "/containers/"+c.ID+"?force=true", nil); err != nil {
			return err
		}
	}
	return nil
}

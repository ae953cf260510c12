package stack

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
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

// pack returns the files of an image, or of a layer of one.
func pack(files fs.FS) ([]byte, error) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := errors.Join(w.AddFS(files), w.Close()); err != nil {
		return nil, fmt.Errorf("pack image: %w", err)
	}
	return packed.Bytes(), nil
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

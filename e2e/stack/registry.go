package stack

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
)

// A Registry hands out one image, by whatever name it is asked for, to whoever knows its user and password: as much of
// Docker's registry API (https://distribution.github.io/distribution/spec/api/) as a pull takes. What Docker has pulled
// from it the stack removes in the end.
type Registry struct {
	Addr string // 127.0.0.1:<port>, which Docker takes for a registry without TLS

	server         *http.Server
	blobs          map[string][]byte // by digest
	manifest       []byte
	mu             sync.Mutex
	user, password string
	pulls          map[string]int // by image name
}

// registryLabel has the folder of the stack that an image was pulled for.
const registryLabel = imageLabel + ".registry"

// newRegistry starts one whose image has the files of a folder, for the stack in dir.
func newRegistry(dir string, files fs.FS, user, password string) (*Registry, error) {
	r := &Registry{user: user, password: password, blobs: map[string][]byte{}, pulls: map[string]int{}}
	packed, err := pack(files)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	z := gzip.NewWriter(&layer)
	if _, err := z.Write(packed); err != nil || z.Close() != nil {
		return nil, errors.New("pack image: gzip")
	}
	if err := r.describe(dir, digest(packed), layer.Bytes()); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	r.Addr, r.server = listener.Addr().String(), &http.Server{Handler: r}
	go r.server.Serve(listener)
	return r, nil
}

// describe makes the manifest and the configuration of the image
// (https://distribution.github.io/distribution/spec/manifest-v2-2/).
func (r *Registry) describe(dir, diffID string, layer []byte) error {
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Labels": map[string]string{registryLabel: dir}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diffID}}})
	if err != nil {
		return fmt.Errorf("describe image: %w", err)
	}
	blob := func(kind string, data []byte) map[string]any {
		r.blobs[digest(data)] = data
		return map[string]any{"mediaType": kind, "size": len(data), "digest": digest(data)}
	}
	r.manifest, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType,
		"config": blob("application/vnd.docker.container.image.v1+json", config),
		"layers": []any{blob("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)}})
	return err
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, _ := req.BasicAuth(); user != r.user || password != r.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintln(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		return
	}
	name, _, isManifest := strings.Cut(path, "/manifests/")
	data, kind := r.manifest, manifestType
	if isManifest {
		r.pulls[name]++
	} else {
		data, kind = r.blobs[path[strings.LastIndex(path, "/")+1:]], "application/octet-stream"
	}
	if data == nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digest(data))
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	_, _ = w.Write(data)
}

// Login changes who is let in.
func (r *Registry) Login(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password = user, password
}

// Asked returns how often an image of that name was asked for with the right password.
func (r *Registry) Asked(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pulls[name]
}

// Close ends the registry.
func (r *Registry) Close() error { return r.server.Close() }

// removePulled removes the images that were pulled from registries of the stack in dir.
func removePulled(ctx context.Context, dir string) error {
	if !dockerAnswers(ctx) {
		return nil
	}
	b, err := docker(ctx, http.MethodGet, "/images/json?filters="+url.QueryEscape(fmt.Sprintf(`{"label":[%q]}`,
		registryLabel+"="+dir)), nil)
	if err != nil {
		return err
	}
	var images []struct{ ID string }
	if err := json.Unmarshal(b, &images); err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var errs []error
	for _, image := range images {
		_, err := docker(ctx, http.MethodDelete, "/images/"+image.ID+"?force=true", nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

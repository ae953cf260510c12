package driver

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/state/statetest"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// host is a machine with a Vault, one allocation and one plugin process at a time.
type host struct {
	*testing.T
	*vaulttest.Server
	*plugin
	machine *machine
	config  config.Operator
	alloc   string // the allocation's directory
	stderr  string // of its task: a FIFO's path
	runs    int
}

// plugin is a process of ours.
type plugin struct {
	*Driver
	inner *wrapped
	kill  context.CancelFunc

	mu   sync.Mutex
	log  bytes.Buffer
	told []string // events
}

// bubble runs a scenario in which time passes only while everybody waits. What the scenario leaves running fails it.
func bubble(t *testing.T, scenario func(*host)) {
	t.Helper()
	state := statetest.Memory(t)
	synctest.Test(t, func(t *testing.T) {
		h := &host{T: t, Server: vaulttest.New(t), machine: &machine{procs: map[int]*taskProcess{}}, alloc: t.TempDir(),
			stderr: os.DevNull}
		h.JWT = jwt("one")
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour}
		h.config = config.Operator{Name: "vault-fake", Clusters: []vault.Cluster{h.Cluster()}, StateDir: state,
			StartTimeout: time.Minute,
			Linger:       time.Minute, PollInterval: 30 * time.Second, MinPollInterval: 5 * time.Second}
		for _, dir := range []string{"alloc", "web/local", "web/secrets"} {
			must.NoError(t, os.MkdirAll(filepath.Join(h.alloc, dir), 0o755))
		}
		h.identity(h.JWT)
		h.boot()
		defer func() { h.kill(); after(48 * time.Hour) }() // until the slowest call of a wrapped driver is over
		scenario(h)
	})
}

// jwt has the form of a workload identity. Its signature is the sentinel's.
func jwt(name string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"EdDSA"}`)) + "." + part([]byte(`{"sub":"`+name+`"}`)) + "." +
		part(bytes.Repeat([]byte(vaulttest.Planted), 10))
}

func (h *host) identity(jwt string) { h.put("web/secrets/nomad_vault.jwt", jwt) }

// put writes a file of the allocation.
func (h *host) put(path, data string) {
	must.NoError(h, os.WriteFile(filepath.Join(h.alloc, path), []byte(data), 0o600))
}

// file is a file of the task, empty when there is none.
func (h *host) file(path string) string {
	data, err := os.ReadFile(filepath.Join(h.alloc, "web", path))
	if !os.IsNotExist(err) {
		must.NoError(h, err)
	}
	return string(data)
}

// boot starts a plugin process, as the agent does it.
func (h *host) boot() {
	ctx, cancel := context.WithCancel(context.Background())
	p := &plugin{kill: cancel}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: p})
	p.inner = newWrapped(ctx, h.machine)
	p.Driver = New(ctx, logger, h.config.Name, p.inner)
	must.NoError(h, p.Configure(h.config))
	events, err := p.TaskEvents(ctx)
	must.NoError(h, err)
	go func() {
		for {
			select {
			case e := <-events:
				p.mu.Lock()
				p.told = append(p.told, e.Message)
				p.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	p.Serve()
	h.plugin = p
}

// crash ends the plugin process without a word, and what it had to do with it.
func (h *host) crash() {
	h.kill()
	synctest.Wait()
}

// reboot is a crash of the plugin after which the agent starts it again.
func (h *host) reboot() {
	h.crash()
	h.boot()
}

// StartTask starts a task for an agent that gets the answer: it asks about the task at once.
func (p *plugin) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	handle, network, err := p.Driver.StartTask(cfg)
	p.task(cfg.ID)
	return handle, network, err
}

// Write takes the log.
func (p *plugin) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(line)
}

// logged counts the lines of the log that have the words.
func (p *plugin) logged(words string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.log.String(), words)
}

// events returns those since it was last asked.
func (p *plugin) events() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	told := p.told
	p.told = nil
	return told
}

// run is one run of the task "web".
type run struct {
	*host
	cfg    *drivers.TaskConfig
	handle *drivers.TaskHandle
}

// job is the next run of the task with that config block, which is decoded with the defaults of the specification.
func (h *host) job(config string) *drivers.TaskConfig {
	h.runs++
	cfg := &drivers.TaskConfig{ID: fmt.Sprintf("alloc-1/web/%d", h.runs), AllocID: "alloc-1", Name: "web",
		AllocDir: h.alloc,
		Env:      map[string]string{"NOMAD_TASK_NAME": "web"}, StdoutPath: os.DevNull, StderrPath: h.stderr}
	must.NoError(h, encode(h.T, cfg, config))
	return cfg
}

// elsewhere is job with a directory of its own for the allocation, which can go.
func (h *host) elsewhere(config string) *drivers.TaskConfig {
	cfg := h.job(config)
	cfg.AllocDir = filepath.Join(h.TempDir(), "alloc")
	must.NoError(h, os.CopyFS(cfg.AllocDir, os.DirFS(h.alloc)))
	return cfg
}

// encode gives cfg the config block as the agent does it: by the specification, with its defaults.
func encode(t *testing.T, cfg *drivers.TaskConfig, block string) error {
	t.Helper()
	attrs := config.TaskSpec()
	attrs["command"] = hclspec.NewAttr("command", "string", false)
	attrs["args"] = hclspec.NewAttr("args", "list(string)", false)
	attrs["auth"] = config.ImageAuthSpec()["auth"]
	for _, theirs := range []string{"username", "password", "server_address"} { // as Nomad's docker has it
		attrs["auth"].GetBlockValue().Nested.GetObject().Attributes[theirs] = hclspec.NewAttr(theirs, "string", false)
	}
	spec, diagnostics := hclspecutils.Convert(hclspec.NewObject(attrs))
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics))
	value, diagnostics, _ := hclutils.ParseHclInterface(hclutils.HclConfigToInterface(t,
		"config {\ncommand = \"app\"\n"+block+"\n}"), spec, nil)
	if diagnostics.HasErrors() {
		return diagnostics
	}
	return cfg.EncodeDriverConfig(value)
}

// start starts the task, which must succeed, and forgets what was recorded until then.
func (h *host) start(config string) *run {
	h.Helper()
	cfg := h.job(config)
	handle, _, err := h.StartTask(cfg)
	must.NoError(h, err)
	h.events()
	h.inner.did()
	return &run{h, cfg, handle}
}

// startUnanswered starts the task for an agent that dies before it has the answer.
func (h *host) startUnanswered(cfg *drivers.TaskConfig) {
	h.Helper()
	_, _, err := h.Driver.StartTask(cfg)
	must.NoError(h, err)
}

// refused starts the task, which must fail and leave nothing, and returns the error.
func (h *host) refused(config string) error {
	h.Helper()
	_, _, err := h.StartTask(h.job(config))
	must.Error(h, err)
	h.nothingLeft()
	return err
}

// nothingLeft checks that no run has left anything.
func (h *host) nothingLeft() {
	h.Helper()
	synctest.Wait()
	must.Len(h, 0, h.Tokens())
	must.Len(h, 0, h.Users())
	must.Len(h, 0, h.machine.running())
	must.Len(h, 0, h.records())
	for _, dir := range []string{"alloc", "web/local", "web/secrets"} {
		entries, err := os.ReadDir(filepath.Join(h.alloc, dir))
		must.NoError(h, err)
		for _, e := range entries {
			must.StrHasSuffix(h, ".jwt", e.Name(), must.Sprint("a file is left in ", dir))
		}
	}
}

// records are the files in the state directory.
func (h *host) records() []string {
	entries, err := os.ReadDir(h.config.StateDir)
	must.NoError(h, err)
	var names []string
	for _, e := range entries {
		if e.Name() != "lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// wait returns the channel of the task's result.
func (r *run) wait() <-chan *drivers.ExitResult {
	ended, err := r.WaitTask(r.Context(), r.cfg.ID)
	must.NoError(r, err)
	return ended
}

// process is the one that runs.
func (r *run) process() *taskProcess {
	r.Helper()
	synctest.Wait()
	all := r.machine.running()
	must.Len(r, 1, all)
	return all[0]
}

// exit ends the process by itself.
func (r *run) exit(code int) { r.machine.exit(r.process().pid, &drivers.ExitResult{ExitCode: code}) }

// runs reports whether the task has not ended.
func (r *run) alive() bool {
	synctest.Wait()
	t, ok := r.task(r.cfg.ID)
	if !ok {
		return false
	}
	select {
	case <-t.done:
		return false
	default:
		return true
	}
}

// recovered has the plugin recover the task from the handle as the agent has stored it: without the bytes of its
// config.
func (r *run) recovered() {
	r.Helper()
	must.NoError(r, r.RecoverTask(r.stored()))
	synctest.Wait()
}

func (r *run) stored() *drivers.TaskHandle {
	handle := r.handle.Copy()
	must.NoError(r, handle.Config.EncodeConcreteDriverConfig(nil))
	return handle
}

// did is what the wrapped driver was asked since it was last looked at.
func (r *run) did() []string {
	synctest.Wait()
	return r.inner.did()
}

// stop stops the task and destroys it, as the agent does.
func (r *run) stop() {
	r.Helper()
	must.NoError(r, r.StopTask(r.cfg.ID, 5*time.Second, "SIGTERM"))
	must.NoError(r, r.DestroyTask(r.cfg.ID, true))
}

// after waits for a while of the bubble's time.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// templateHCL is a template block.
func templateHCL(destination, data, more string) string {
	return fmt.Sprintf("template {\n destination = %q\n data = %q\n splay = \"0s\"\n %s\n}\n", destination, data, more)
}

const (
	asApp = "vault {\n role = \"app\"\n}\n"
	kv    = `{{ with secret "secret/data/web" }}{{ .Data.data.k }}{{ end }}`
	creds = `{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}`

	onSignal = "change_mode = \"signal\"\n change_signal = \"SIGHUP\""
	onNoop   = "change_mode = \"noop\""
	onScript = "change_mode = \"script\"\n change_script {\n command = \"/bin/tell\"\n args = [\"web\"]\n }"
)

// write writes the KV secret that kv reads.
func (h *host) write(value string) { h.Put("secret/web", map[string]any{"k": value}) }

// only is the only one of them.
func only[T any](t *testing.T, all []T) (one T) {
	t.Helper()
	must.Len(t, 1, all)
	return all[0]
}

// sorted makes the order of what has none reliable.
func sorted(all []string) []string { return slices.Sorted(slices.Values(all)) }

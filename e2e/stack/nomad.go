package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/template"

	nomad "github.com/hashicorp/nomad/api"
)

// AppPath is where a task that mounts the host volume "app" at /opt/app finds the test application. A raw_exec task,
// which mounts nothing, runs HostAppPath: Nomad puts the path on the host there.
const (
	AppPath     = "/opt/app/app"
	HostAppPath = "${meta.app}"
)

// A Nomad is a cluster of two agents with ACLs on: a server, and a client, which is what Stop, Kill and Start act on.
// Neither is in dev mode, so that tasks survive the end of the client. Beside the plugins the client has Nomad's own
// drivers; the chroot that it makes for exec is small, the same as Image.
type Nomad struct {
	Process
	Addr  string        // of the server, http://127.0.0.1:<port>
	Token string        // management
	API   *nomad.Client // with that token

	server Process
	stack  *Stack
	ports  map[string]int
}

// startNomad starts the server first: a client that comes before the server has made its keys tries again only after
// half a minute.
func (s *Stack) startNomad(ctx context.Context) error {
	n := &Nomad{stack: s, Token: uuid(), ports: map[string]int{}}
	n.Process = Process{Name: "nomad client", LogFile: s.path("client.log"), quit: syscall.SIGINT}
	n.server = Process{Name: "nomad server", LogFile: s.path("server.log"), quit: syscall.SIGINT}
	for _, name := range []string{"HTTP", "RPC", "Serf", "ClientHTTP"} {
		var err error
		if n.ports[name], err = freePort(); err != nil {
			return err
		}
	}
	n.Addr = fmt.Sprintf("http://127.0.0.1:%d", n.ports["HTTP"])
	var err error
	if n.API, err = nomad.NewClient(&nomad.Config{Address: n.Addr, SecretID: n.Token}); err != nil {
		return fmt.Errorf("make client of Nomad: %w", err)
	}
	if err := n.writeConfig(); err != nil {
		return err
	}
	s.Nomad = n
	if err := n.agent(&n.server, s.path("server.hcl"), s.path("more.hcl")); err != nil {
		return err
	}
	if err := n.server.await(ctx, func() error { return n.leads(ctx) }); err != nil {
		return err
	}
	if _, _, err := n.API.ACLTokens().BootstrapOpts(n.Token, writing(ctx)); err != nil {
		return fmt.Errorf("bootstrap ACLs: %w", err)
	}
	s.options.Log("Nomad is on %s", n.Addr)
	return n.Start(ctx)
}

// Start starts the client, also again after Stop or Kill, on the same data. It returns when every driver is healthy.
func (n *Nomad) Start(ctx context.Context) error {
	files := []string{n.stack.path("client.hcl"), n.stack.path("more.hcl")}
	if n.stack.options.AsInExamples { // Read first: plugin_dir, a path of the operator's machine, is overruled by ours.
		files = slices.Insert(files, 0, n.stack.path("example.hcl"))
	}
	if err := n.agent(&n.Process, files...); err != nil {
		return err
	}
	return n.await(ctx, func() error { return n.ready(ctx) })
}

// Serve has the client serve other plugins from its next Start on.
func (n *Nomad) Serve(plugins ...Plugin) error {
	n.stack.options.Plugins = append([]Plugin{}, plugins...)
	if err := os.RemoveAll(n.stack.path("plugins")); err != nil {
		return fmt.Errorf("empty plugin_dir: %w", err)
	}
	return n.writeConfig()
}

// agent starts a process of Nomad with the given configuration.
func (n *Nomad) agent(p *Process, files ...string) error {
	binary, err := n.stack.tool("NOMAD_BIN", "nomad")
	if err != nil {
		return err
	}
	args := []string{binary, "agent", "-config=" + n.stack.path("agent.hcl")}
	for _, f := range files {
		args = append(args, "-config="+f)
	}
	cmd := exec.Command("nohup", args...) // as some scripts start it: plugins then ignore SIGHUP, and tasks must not
	cmd.Env = append(clean(n.stack.Dir), "NOMAD_DRIVER_VAULT_FAULTS="+n.stack.path(faultDir))
	return p.launch(cmd)
}

// leads returns nil when the server has elected itself and has made the keys that it signs identities with.
func (n *Nomad) leads(ctx context.Context) error {
	var leader string
	_, err := n.API.Raw().Query("/v1/status/leader", &leader, reading(ctx))
	if ours := fmt.Sprintf("127.0.0.1:%d", n.ports["RPC"]); err == nil && leader != ours {
		err = fmt.Errorf("its leader is %q and not %s: it is somebody else's, if it has one", leader, ours)
	}
	if err != nil {
		return err
	}
	var keys struct{ Keys []any }
	_, err = n.API.Raw().Query("/.well-known/jwks.json", &keys, reading(ctx))
	if err == nil && len(keys.Keys) == 0 {
		err = errors.New("it has no keys yet")
	}
	return err
}

// ready returns nil when every driver that should work does.
func (n *Nomad) ready(ctx context.Context) error {
	if err := answers(ctx, fmt.Sprintf("http://127.0.0.1:%d/v1/agent/health", n.ports["ClientHTTP"])); err != nil {
		return err
	}
	nodes, _, err := n.API.Nodes().List(reading(ctx))
	if err != nil {
		return err
	}
	if len(nodes) != 1 || nodes[0].Status != nomad.NodeStatusReady {
		return errors.New("the client is not ready")
	}
	wanted := []string{"raw_exec", "exec", "docker"}
	for _, p := range n.stack.plugins() {
		wanted = append(wanted, p.Name)
	}
	for _, name := range wanted {
		if strings.HasSuffix(name, "docker") && !n.stack.Docker {
			continue
		}
		d := nodes[0].Drivers[name]
		if d == nil {
			return fmt.Errorf("driver %s is not detected", name)
		}
		if !d.Healthy {
			return fmt.Errorf("driver %s is not healthy: %s", name, d.HealthDescription)
		}
	}
	return nil
}

// plugins are the ones asked for, or all three.
func (s *Stack) plugins() []Plugin {
	if s.options.Plugins != nil && !s.options.AsInExamples {
		return s.options.Plugins
	}
	return []Plugin{Wrap("exec", "vault-exec"), Wrap("docker", "vault-docker"), Wrap("raw_exec", "vault-raw_exec")}
}

// Wrap is the plugin that wraps a driver of Nomad's and is published under a name.
func Wrap(driver, name string) Plugin {
	p := Plugin{Name: name, Config: "min_poll_interval = \"1s\"\n"} // A test should not wait longer than it must.
	if name != "vault-"+driver {
		p.Args = []string{"-driver=" + driver, "-name=" + name}
	}
	if name == "raw_exec" { // Off unless an operator says so, as Nomad's own is.
		p.Config += "enabled = true\n"
	}
	if driver == "docker" {
		p.Config += "volumes {\n enabled = true\n }\n gc {\n image = false\n }\n infra_image = \"" + pauseImage + "\""
	}
	return p
}

// writeConfig writes the agents' files and fills the plugin_dir with links to the plugin.
func (n *Nomad) writeConfig() error {
	s := n.stack
	plugins := s.plugins()
	if err := s.linkPlugins(plugins); err != nil {
		return err
	}
	serves := func(name string) bool {
		return slices.ContainsFunc(plugins, func(p Plugin) bool { return p.Name == name })
	}
	data := map[string]any{
		"Dir": s.Dir, "AllocDir": s.path(allocDir), "Ports": n.ports, "CNI": cniPath(),
		"Example": filepath.Join(s.root, "example"),
		"Plugins": plugins, "Clusters": s.clusters(), "Examples": s.options.AsInExamples,
		"NomadsOwn": s.options.NomadsOwn, "Blocks": s.options.Blocks,
		"OwnDocker": !serves("docker"), "OwnRawExec": !serves("raw_exec"), "PauseImage": pauseImage,
	}
	for _, t := range agentConfig.Templates() {
		var b bytes.Buffer
		if err := t.Execute(&b, data); err != nil {
			return fmt.Errorf("write configuration of Nomad: %w", err)
		}
		if err := os.WriteFile(s.path(t.Name()), b.Bytes(), 0o600); err != nil {
			return fmt.Errorf("write configuration of Nomad: %w", err)
		}
	}
	if s.options.AsInExamples {
		if err := s.writeExample(); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.path("more.hcl"), []byte(s.options.Agent), 0o600); err != nil {
		return fmt.Errorf("write configuration of Nomad: %w", err)
	}
	return nil
}

// pluginConfig is how the config of one of our plugins begins in example/agent.hcl.
var pluginConfig = regexp.MustCompile(`(?m)^plugin "(vault-[a-z_]+)" \{\n  config \{\n`)

// writeExample writes example/agent.hcl with the address of this Vault, and with directories of the stack: it touches
// nothing of an agent and a Vault that run on this machine already. What doors lead to is on this machine.
func (s *Stack) writeExample() error {
	example, err := os.ReadFile(filepath.Join(s.root, "example", "agent.hcl"))
	if err != nil {
		return fmt.Errorf("write configuration of Nomad: %w", err)
	}
	ours := strings.ReplaceAll(string(example), "http://127.0.0.1:8200", s.Clusters["default"].Addr)
	ours = pluginConfig.ReplaceAllString(ours, fmt.Sprintf("${0}    state_dir = \"%s/$1\"\n    doors {\n      "+
		"allow_cidrs = [\"127.0.0.0/8\"]\n      record_dir  = %q\n    }\n", s.path("state"), s.path("doors")))
	if err := os.WriteFile(s.path("example.hcl"), []byte(ours), 0o600); err != nil {
		return fmt.Errorf("write configuration of Nomad: %w", err)
	}
	return nil
}

// cluster is how the plugins reach one.
type cluster struct{ Addr, CA string }

// clusters are those of the plugins' configuration, by name.
func (s *Stack) clusters() map[string]cluster {
	all := map[string]cluster{}
	for name, v := range s.Clusters {
		all[name] = cluster{Addr: v.Addr}
	}
	for name, p := range s.Proxies {
		all[name] = cluster{Addr: p.Addr, CA: p.CA}
	}
	return all
}

func (s *Stack) linkPlugins(plugins []Plugin) error {
	dir := s.path("plugins")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make plugin_dir: %w", err)
	}
	binary, err := s.plugin()
	if err != nil {
		return err
	}
	for _, p := range plugins {
		if err := os.Symlink(binary, filepath.Join(dir, p.Name)); err != nil {
			return fmt.Errorf("link plugin: %w", err)
		}
	}
	return nil
}

// agentConfig has the agents' files: one that both read, and one for each. Cloud probes are off because some of them
// fail where AWS_CA_BUNDLE is set, java because looking for it takes seconds. "lo" as the network interface makes
// 127.0.0.1 the address of every service. Nomad's own docker must not remove containers that are ours, and nothing is
// collected that a test may still want to read.
var agentConfig = template.Must(template.New("agent.hcl").Parse(`
bind_addr            = "127.0.0.1"
log_level            = "DEBUG"
disable_update_check = true

advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

acl {
  enabled = true
}

consul {
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}

{{if .NomadsOwn}}
{{- with index .Clusters "default"}}
vault {
  enabled               = true
  address               = "{{.Addr}}"
  ca_file               = "{{.CA}}"
  jwt_auth_backend_path = "jwt-nomad"
  create_from_role      = "nomad-workloads"
  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}
{{end}}
{{- end}}

{{define "server.hcl"}}
name     = "server"
data_dir = "{{.Dir}}/server"

ports {
  http = {{.Ports.HTTP}}
  rpc  = {{.Ports.RPC}}
  serf = {{.Ports.Serf}}
}

server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1
}
{{end}}

{{define "client.hcl"}}
name       = "client"
data_dir   = "{{.Dir}}/client"
plugin_dir = "{{.Dir}}/plugins"

ports {
  http = {{.Ports.ClientHTTP}}
}

telemetry {
  publish_allocation_metrics = true
}

client {
  enabled                  = true
  servers                  = ["127.0.0.1:{{.Ports.RPC}}"]
  alloc_dir                = "{{.AllocDir}}"
  network_interface        = "lo"
  cni_path                 = "{{.CNI}}"
  cni_config_dir           = "{{.Example}}"
  gc_max_allocs            = 1000
  gc_disk_usage_threshold  = 100
  gc_inode_usage_threshold = 100

  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.denylist"      = "java,qemu,mock_driver"
  }

  chroot_env {
    "{{.Dir}}/root/bin" = "/bin"
    "{{.Dir}}/root/etc" = "/etc"
  }

  meta {
    app = "{{.Dir}}/bin/app"
  }

  host_volume "app" {
    path      = "{{.Dir}}/bin"
    read_only = true
  }
}

{{if .OwnRawExec}}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
{{end}}
{{- if not .Examples}}
{{if .OwnDocker}}
plugin "docker" {
  config {
    infra_image = "{{.PauseImage}}"
    volumes {
      enabled = true
    }
    gc {
      image = false
      dangling_containers {
        enabled = false
      }
    }
  }
}
{{end}}
{{- range .Plugins}}
plugin "{{.Name}}" {
  args = [{{range .Args}}{{printf "%q" .}}, {{end}}]
  config {
    state_dir = "{{$.Dir}}/state/{{.Name}}"
    doors {
      allow_cidrs = ["127.0.0.0/8"]
      record_dir  = "{{$.Dir}}/doors"
    }
    {{- range $name, $vault := $.Clusters}}
    vault "{{$name}}" {
      address               = "{{$vault.Addr}}"
      ca_file               = "{{$vault.CA}}"
      jwt_auth_backend_path = "jwt-nomad"
      create_from_role      = "nomad-workloads"
    }
    {{- end}}
    {{- range $name, $more := $.Blocks}}
    vault "{{$name}}" {
      address = "{{(index $.Clusters "default").Addr}}"
      {{$more}}
    }
    {{- end}}
    {{.Config}}
  }
}
{{end}}
{{end}}
{{end}}`))

// cniPath is the folder of the CNI plugins: Debian's, or the one that Nomad's documentation installs them in. Empty:
// there are none.
func cniPath() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return ""
}

// uuid is random, in the form that Nomad wants of a token.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // It never fails (crypto/rand).
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

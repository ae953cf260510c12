package plugin

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin/wrapped"
)

// pluginOptions is our part of a plugin "vault-exec" { config {} } block. The wrapped driver decodes its own part
// from the same bytes; each ignores the other's keys.
type pluginOptions struct {
	// Vault has pointers: the decoder reuses one value for all that a map is to hold.
	Vault           map[string]*cluster `codec:"vault"`
	StateDir        string              `codec:"state_dir"`
	StartTimeout    string              `codec:"start_timeout"`
	Linger          string              `codec:"linger"`
	PollInterval    string              `codec:"poll_interval"`
	MinPollInterval string              `codec:"min_poll_interval"`
	DeniedUsers     []string            `codec:"denied_users"`
	Doors           *doors              `codec:"doors"`

	Door map[string]*config.OperatorDoor `codec:"door"`

	Filesystem     string   `codec:"filesystem"`      // exec only: for the fingerprint
	AuthRegistries []string `codec:"auth_registries"` // docker only
}

// ConfigSpec returns the options that this plugin adds to those of the driver it wraps when it is published as name:
// what an operator writes in the config block of a plugin block.
func ConfigSpec(wraps, name string) map[string]*hclspec.Spec {
	d, beside := wrapped.Find(wraps), wraps != name
	var denied []string
	if beside {
		denied = d.DeniedUsers
	}
	spec := map[string]*hclspec.Spec{
		"vault":             hclspec.NewBlockMap("vault", []string{"name"}, hclspec.NewObject(clusterSpec)),
		"state_dir":         text("state_dir", filepath.Join("/run/nomad-driver-vault", name)),
		"start_timeout":     text("start_timeout", "60s"),
		"linger":            text("linger", "60s"),
		"poll_interval":     text("poll_interval", "30s"),
		"min_poll_interval": text("min_poll_interval", "5s"),
		"denied_users":      list("denied_users", denied),
		"doors":             hclspec.NewBlock("doors", false, hclspec.NewObject(doorsSpec)),
		"door":              hclspec.NewBlockMap("door", []string{"name"}, hclspec.NewObject(config.OperatorDoorSpec())),
	}
	if d.Options != nil {
		maps.Copy(spec, d.Options(beside))
	}
	if d.PullsImages {
		spec["auth_registries"] = list("auth_registries", nil)
	}
	return spec
}

// TaskConfigSpec returns the options that this plugin adds to a task's config block for the driver it wraps. Where the
// driver has a block of the same name, these are the options that we add to that block.
func TaskConfigSpec(wraps string) map[string]*hclspec.Spec {
	spec := config.TaskSpec()
	if wrapped.Find(wraps).PullsImages {
		maps.Copy(spec, config.ImageAuthSpec())
	}
	return spec
}

// merge returns our option or, where the wrapped driver has a block of the same name, a copy of that block with our
// options in it.
func merge(theirs, ours *hclspec.Spec) *hclspec.Spec {
	block := theirs.GetBlockValue()
	if block == nil {
		return ours
	}
	attrs := maps.Clone(block.Nested.GetObject().Attributes)
	maps.Copy(attrs, ours.GetBlockValue().Nested.GetObject().Attributes)
	return hclspec.NewBlock(block.Name, block.Required, hclspec.NewObject(attrs))
}

// cluster is one vault block, with the field names of the agent's own
// (https://developer.hashicorp.com/nomad/docs/configuration/vault).
type cluster struct {
	Address       string `codec:"address"`
	AuthPath      string `codec:"jwt_auth_backend_path"`
	Role          string `codec:"create_from_role"`
	Namespace     string `codec:"namespace"`
	CAFile        string `codec:"ca_file"`
	CAPath        string `codec:"ca_path"`
	CertFile      string `codec:"cert_file"`
	KeyFile       string `codec:"key_file"`
	TLSServerName string `codec:"tls_server_name"`
	TLSSkipVerify bool   `codec:"tls_skip_verify"`
	RateLimit     string `codec:"rate_limit"`

	Token     vault.Token       `codec:"token"`
	TokenFile string            `codec:"token_file"`
	Allow     map[string]*allow `codec:"allow"`
}

// allow is which policies tasks of a Nomad namespace may ask for.
type allow struct {
	Policies []string `codec:"policies"`
}

// doors is the doors block: what the doors of all tasks may do.
type doors struct {
	AllowHosts []string `codec:"allow_hosts"`
	AllowCIDRs []string `codec:"allow_cidrs"`
	RecordDir  string   `codec:"record_dir"`
}

var doorsSpec = map[string]*hclspec.Spec{
	"allow_hosts": list("allow_hosts", nil),
	"allow_cidrs": list("allow_cidrs", nil),
	"record_dir":  hclspec.NewAttr("record_dir", "string", false),
}

// forDriver is what package driver needs of the block, which may be left out.
func (d *doors) forDriver() (out config.Doors, err error) {
	if d == nil {
		return out, nil
	}
	for _, text := range d.AllowCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("plugin config: doors: allow_cidrs: %q is not a block of addresses such as \"10.0.0.0/8\"",
				text)
		}
		out.AllowCIDRs = append(out.AllowCIDRs, p)
	}
	if d.RecordDir != "" && !filepath.IsAbs(d.RecordDir) {
		return out, fmt.Errorf("plugin config: doors: record_dir %q is not an absolute path", d.RecordDir)
	}
	out.AllowHosts, out.RecordDir = d.AllowHosts, d.RecordDir
	return out, nil
}

var clusterSpec = map[string]*hclspec.Spec{
	"address":               hclspec.NewAttr("address", "string", true),
	"jwt_auth_backend_path": text("jwt_auth_backend_path", "jwt-nomad"),
	"create_from_role":      hclspec.NewAttr("create_from_role", "string", false),
	"namespace":             hclspec.NewAttr("namespace", "string", false),
	"ca_file":               hclspec.NewAttr("ca_file", "string", false),
	"ca_path":               hclspec.NewAttr("ca_path", "string", false),
	"cert_file":             hclspec.NewAttr("cert_file", "string", false),
	"key_file":              hclspec.NewAttr("key_file", "string", false),
	"tls_server_name":       hclspec.NewAttr("tls_server_name", "string", false),
	"tls_skip_verify":       hclspec.NewAttr("tls_skip_verify", "bool", false),
	"rate_limit":            hclspec.NewAttr("rate_limit", "string", false),
	"token":                 hclspec.NewAttr("token", "string", false),
	"token_file":            hclspec.NewAttr("token_file", "string", false),
	"allow": hclspec.NewBlockMap("allow", []string{"namespace"}, hclspec.NewObject(map[string]*hclspec.Spec{
		"policies": hclspec.NewAttr("policies", "list(string)", true),
	})),
}

// text is an optional string with a default.
func text(name, value string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, "string", false), hclspec.NewLiteral(fmt.Sprintf("%q", value)))
}

// list is an optional list of strings with a default.
func list(name string, values []string) *hclspec.Spec {
	var quoted []string
	for _, v := range values {
		quoted = append(quoted, strconv.Quote(v))
	}
	return hclspec.NewDefault(hclspec.NewAttr(name, "list(string)", false),
		hclspec.NewLiteral("["+strings.Join(quoted, ", ")+"]"))
}

// decode reads our part of the configuration. An error names the field.
func decode(raw []byte) (pluginOptions, error) {
	var c pluginOptions
	if err := base.MsgPackDecode(raw, &c); err != nil {
		return c, fmt.Errorf("decode plugin config: %w", err)
	}
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("plugin config: state_dir %q is not an absolute path", c.StateDir)
	}
	return c, nil
}

// forDriver is what package driver needs of it. An error names the field.
func (c pluginOptions) forDriver(wraps, name string) (config.Operator, error) {
	d := wrapped.Find(wraps)
	out := config.Operator{Name: name, Clusters: c.clusters(), StateDir: c.StateDir, DeniedUsers: c.DeniedUsers,
		AuthRegistries: c.AuthRegistries, Allow: c.allowed(), DefaultUser: d.User, ImageUser: d.PullsImages}
	var err error
	if out.Doors, err = c.Doors.forDriver(); err != nil {
		return out, err
	}
	if len(c.Door) > 0 {
		out.Doors.Own = c.Door
	}
	for _, d := range []struct {
		field, value string
		to           *time.Duration
	}{
		{"start_timeout", c.StartTimeout, &out.StartTimeout},
		{"linger", c.Linger, &out.Linger},
		{"poll_interval", c.PollInterval, &out.PollInterval},
		{"min_poll_interval", c.MinPollInterval, &out.MinPollInterval},
	} {
		if *d.to, err = time.ParseDuration(d.value); err != nil {
			return out, fmt.Errorf("plugin config: %s %q is not a duration such as \"30s\"", d.field, d.value)
		}
	}
	return out, nil
}

// clusters returns the vault blocks sorted by name.
func (c pluginOptions) clusters() []vault.Cluster {
	var all []vault.Cluster
	for _, name := range c.names() {
		v := c.Vault[name]
		all = append(all, vault.Cluster{Name: name, Address: v.Address, Namespace: v.Namespace, AuthPath: v.AuthPath,
			Role: v.Role, CAFile: v.CAFile, CAPath: v.CAPath, CertFile: v.CertFile, KeyFile: v.KeyFile,
			TLSServerName: v.TLSServerName, TLSSkipVerify: v.TLSSkipVerify,
			RateLimit: v.RateLimit, Token: v.Token, TokenFile: v.TokenFile})
	}
	return all
}

// allowed returns the allow blocks.
func (c pluginOptions) allowed() config.Allow {
	var all config.Allow
	for name, v := range c.Vault {
		for namespace, a := range v.Allow {
			if all == nil {
				all = config.Allow{}
			}
			if all[name] == nil {
				all[name] = map[string][]string{}
			}
			all[name][namespace] = a.Policies
		}
	}
	return all
}

func (c pluginOptions) names() []string { return slices.Sorted(maps.Keys(c.Vault)) }

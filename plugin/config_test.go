package plugin

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin/drivertest"
	"nomad-driver-vault/plugin/execroot"
)

func newPlugin(t *testing.T, wraps, name string) *Plugin {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return New(ctx, hclog.NewNullLogger(), wraps, name)
}

func configure(t *testing.T, p *Plugin, body string) error {
	t.Helper()
	schema, err := p.ConfigSchema()
	must.NoError(t, err)
	raw, err := drivertest.Encode(t, schema, body)
	if err != nil {
		return err
	}
	return p.SetConfig(&base.Config{PluginConfig: raw, AgentConfig: &base.AgentConfig{}})
}

// options is the wrapped driver's view of a configuration.
func options(t *testing.T, p *Plugin, body string) map[string]any {
	t.Helper()
	schema, err := p.ConfigSchema()
	must.NoError(t, err)
	raw, err := drivertest.Encode(t, schema, body)
	must.NoError(t, err)
	var all map[string]any
	must.NoError(t, base.MsgPackDecode(raw, &all))
	return all
}

func decoded(t *testing.T, p *Plugin, body string) config.Operator {
	t.Helper()
	schema, err := p.ConfigSchema()
	must.NoError(t, err)
	raw, err := drivertest.Encode(t, schema, body)
	must.NoError(t, err)
	own, err := decode(raw)
	must.NoError(t, err)
	c, err := own.forDriver(p.wraps, p.name)
	must.NoError(t, err)
	return c
}

func TestConfigDefaults(t *testing.T) {
	for name, test := range map[string]struct {
		denied, registries []string
		user               string
		images             bool
	}{
		"vault-exec":     {denied: []string{"root"}, user: "nobody"},
		"vault-docker":   {denied: []string{}, registries: []string{}, images: true},
		"vault-raw_exec": {denied: []string{}, user: "0"},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, config.Operator{
				Name:            name,
				StateDir:        "/run/nomad-driver-vault/" + name,
				StartTimeout:    time.Minute,
				Linger:          time.Minute,
				PollInterval:    30 * time.Second,
				MinPollInterval: 5 * time.Second,
				DeniedUsers:     test.denied,
				AuthRegistries:  test.registries,
				DefaultUser:     test.user,
				ImageUser:       test.images,
			}, decoded(t, newPlugin(t, name[len("vault-"):], name), ""))
		})
	}
}

func TestConfigEveryField(t *testing.T) {
	got := decoded(t, newPlugin(t, "docker", "vault-docker"), `
		vault "west" { address = "https://west:8200" }
		vault "roles" {
			address          = "https://vault:8200"
			create_from_role = "nomad-cluster"
			token            = "hvs.x"
			allow "*" { policies = ["app-*"] }
			allow "prod" { policies = ["db", "cache"] }
			allow "test" { policies = ["dbtest"] }
		}
		vault "file" {
			address          = "https://vault:8200"
			create_from_role = "nomad-cluster"
			token_file       = "/etc/nomad.d/vault_token"
			allow "prod" { policies = [] }
		}
		vault "default" {
			address               = "https://vault:8200"
			jwt_auth_backend_path = "jwt-prod"
			create_from_role      = "nomad"
			namespace             = "team"
			ca_file               = "/ca.pem"
			ca_path               = "/ca"
			cert_file             = "/cert.pem"
			key_file              = "/key.pem"
			tls_server_name       = "vault.service"
			tls_skip_verify       = true
		}
		state_dir         = "/var/lib/ndv"
		start_timeout     = "2m"
		linger            = "0s"
		poll_interval     = "10s"
		min_poll_interval = "1s"
		denied_users      = ["root", "www"]
		doors {
			allow_hosts = ["*.example.com"]
			allow_cidrs = ["10.0.0.0/8"]
			record_dir  = "/var/log/doors"
		}
		door "pay" {
			namespaces = ["prod"]
			vault      = "file"
			policies   = ["pay"]
			url        = "https://pay.example.com"
			header     = { "X-Key" = "k" }
		}
		auth_registries   = ["docker.io", "registry:5000"]`)
	must.Eq(t, config.Operator{
		Name: "vault-docker", ImageUser: true,
		Clusters: []vault.Cluster{
			{Name: "default", Address: "https://vault:8200", AuthPath: "jwt-prod", Role: "nomad", Namespace: "team",
				CAFile: "/ca.pem", CAPath: "/ca", CertFile: "/cert.pem", KeyFile: "/key.pem",
				TLSServerName: "vault.service", TLSSkipVerify: true},
			{Name: "file", Address: "https://vault:8200", AuthPath: "jwt-nomad", Role: "nomad-cluster",
				TokenFile: "/etc/nomad.d/vault_token"},
			{Name: "roles", Address: "https://vault:8200", AuthPath: "jwt-nomad", Role: "nomad-cluster", Token: "hvs.x"},
			{Name: "west", Address: "https://west:8200", AuthPath: "jwt-nomad"},
		},
		Allow: config.Allow{
			"roles": {"*": {"app-*"}, "prod": {"db", "cache"}, "test": {"dbtest"}},
			"file":  {"prod": {}},
		},
		StateDir:        "/var/lib/ndv",
		StartTimeout:    2 * time.Minute,
		PollInterval:    10 * time.Second,
		MinPollInterval: time.Second,
		DeniedUsers:     []string{"root", "www"},
		Doors: config.Doors{AllowHosts: []string{"*.example.com"},
			AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, RecordDir: "/var/log/doors",
			Own: map[string]*config.OperatorDoor{"pay": {Namespaces: []string{"prod"}, Policies: []string{"pay"},
				Door: config.Door{Of: "file", URL: "https://pay.example.com", Header: map[string]string{"X-Key": "k"}}}}},
		AuthRegistries: []string{"docker.io", "registry:5000"},
	}, got)
}

func TestEveryOptionIsDecoded(t *testing.T) {
	all := ConfigSpec("exec", "vault-exec")
	maps.Copy(all, ConfigSpec("docker", "vault-docker"))
	for sentence, c := range map[string]struct {
		spec map[string]*hclspec.Spec
		into []any
	}{
		"the options of drivers": {all, []any{pluginOptions{}, execroot.Config{}}},
		"those of a vault block": {clusterSpec, []any{cluster{}}},
		"those of doors":         {doorsSpec, []any{doors{}}},
	} {
		t.Run(sentence, func(t *testing.T) {
			tags := make(map[string]bool)
			for _, v := range c.into {
				for f := range reflect.TypeOf(v).Fields() {
					tags[f.Tag.Get("codec")] = true
				}
			}
			must.Eq(t, slices.Sorted(maps.Keys(c.spec)), slices.Sorted(maps.Keys(tags)))
		})
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for sentence, c := range map[string]struct{ body, want string }{
		"an unknown option":                  {`vaultt "x" {}`, "vaultt"},
		"an unknown option of a vault block": {`vault "x" { addres = "http://v" }`, "addres"},
		"no address":                         {`vault "x" {}`, `"address" is required`},
		"an address that is not a URL":       {`vault "x" { address = "vault:8200" }`, `vault "x": address "vault:8200"`},
		"an authority file that is not there": {
			`vault "x" { address = "https://v" ca_file = "/none.pem" }`,
			`vault "x": ca_file`,
		},
		"a block of addresses that is none": {`doors { allow_cidrs = ["10.0.0.1"] }`,
			`doors: allow_cidrs: "10.0.0.1" is not a block of addresses such as "10.0.0.0/8"`},
		"a record that is somewhere": {`doors { record_dir = "log" }`, `doors: record_dir "log" is not an absolute path`},
		"a door without namespaces":  {`door "pay" { policies = ["pay"] }`, `"namespaces" is required`},
		"a door of a cluster that makes no tokens": {
			`vault "default" { address = "http://v" } door "pay" {
				namespaces = ["*"]
				policies   = ["pay"]
			}`, `door "pay": vault "default" has no token or token_file`},
		"two clusters of one name": {
			`vault "x" { address = "http://v" } vault "x" { address = "http://w" }`,
			"Duplicate vault",
		},
		"a token and a file of one": {
			`vault "x" { address = "http://v" create_from_role = "r" token = "hvs.secret" token_file = "/t" }`,
			`vault "x": both token and token_file are set: keep one`},
		"a token without a token role": {
			`vault "x" { address = "http://v" token = "hvs.secret" }`,
			`vault "x": create_from_role ""`,
		},
		"a token that is none": {
			`vault "x" { address = "http://v" create_from_role = "r" token = "a b" }`,
			`vault "x": token is not`,
		},
		"a relative token file": {
			`vault "x" { address = "http://v" create_from_role = "r" token_file = "t" }`,
			`vault "x": token_file "t" is not an absolute path`,
		},
		"an allowance where tasks log in": {
			`vault "x" { address = "http://v" allow "*" { policies = ["a"] } }`,
			`vault "x": allow is for a cluster with token`,
		},
		"an allowance of nothing": {`vault "x" { address = "http://v" allow "*" {} }`, `"policies" is required`},
		"an allowance with a bad pattern": {
			`vault "x" { address = "http://v" create_from_role = "r" token_file = "/t" allow "*" { policies = ["a["] } }`,
			`vault "x": allow "*": policies: "a["`,
		},
		"an unknown option of an allowance": {`vault "x" { address = "http://v" allow "*" { policie = ["a"] } }`, "policie"},
		"a word for a number": {
			`vault "x" { address = "http://v" tls_skip_verify = "maybe" }`,
			"tls_skip_verify",
		},
		"a duration without a unit":        {`start_timeout = "60"`, `start_timeout "60" is not a duration such as "30s"`},
		"an empty duration":                {`linger = ""`, `linger "" is not a duration`},
		"a bad interval":                   {`poll_interval = "soon"`, `poll_interval "soon"`},
		"a bad floor":                      {`min_poll_interval = "x"`, `min_poll_interval "x"`},
		"a start without time":             {`start_timeout = "0s"`, "start_timeout 0s"},
		"an interval below its floor":      {`poll_interval = "2s"`, "poll_interval 2s is below min_poll_interval"},
		"a relative state directory":       {`state_dir = "state"`, `state_dir "state" is not an absolute path`},
		"an unknown file system":           {`filesystem = "overlay"`, `filesystem "overlay": set "bind" or "chroot"`},
		"a relative path":                  {`paths = ["usr"]`, `paths: "usr"`},
		"a path that is not clean":         {`paths = ["/usr/../etc"]`, `paths: "/usr/../etc"`},
		"the host's root":                  {`paths = ["/"]`, `paths: "/"`},
		"the task's own directory":         {`paths = ["/local/bin"]`, `paths: "/local/bin" would hide the task's own`},
		"a file system of the kernel":      {`paths = ["/proc"]`, `paths: "/proc" would hide`},
		"a wrong value of the wrapped one": {`default_pid_mode = "some"`, "configure exec: default_pid_mode"},
	} {
		t.Run(sentence, func(t *testing.T) {
			err := configure(t, newPlugin(t, "exec", "vault-exec"), c.body)
			must.ErrorContains(t, err, c.want)
			must.StrNotContains(t, err.Error(), "hvs.secret")
		})
	}
}

func TestSchemaKeepsTheWrappedDriversOptions(t *testing.T) {
	for _, wraps := range Drivers() {
		t.Run(wraps, func(t *testing.T) {
			p := newPlugin(t, wraps, "vault-"+wraps)
			for sentence, schemas := range map[string][2]func() (*hclspec.Spec, error){
				"of the plugin": {p.inner.ConfigSchema, p.ConfigSchema},
				"of a task":     {p.inner.TaskConfigSchema, p.TaskConfigSchema},
			} {
				inner, err := schemas[0]()
				must.NoError(t, err)
				before, auth := len(inner.GetObject().Attributes), len(blockOf(inner, "auth"))
				merged, err := schemas[1]()
				must.NoError(t, err)
				for key, option := range inner.GetObject().Attributes {
					switch key {
					case "gc", "enabled":
						must.NotNil(t, merged.GetObject().Attributes[key])
						continue
					case "auth":
						must.MapContainsKeys(t, blockOf(merged, key), slices.Collect(maps.Keys(blockOf(inner, key))))
						continue
					}
					must.EqOp(t, option, merged.GetObject().Attributes[key], must.Sprintf("option %s %s", key, sentence))
				}
				must.EqOp(t, before, len(inner.GetObject().Attributes), must.Sprint("the wrapped driver's own schema has changed"))
				must.EqOp(t, auth, len(blockOf(inner, "auth")), must.Sprint("and so has its auth block"))
				must.Greater(t, before, len(merged.GetObject().Attributes))
			}
		})
	}
}

// blockOf returns the options of a block of a specification.
func blockOf(spec *hclspec.Spec, name string) map[string]*hclspec.Spec {
	return spec.GetObject().GetAttributes()[name].GetBlockValue().GetNested().GetObject().GetAttributes()
}

func TestAuthOfImagesHasDockersFieldsAndOurs(t *testing.T) {
	schema, err := newPlugin(t, "docker", "vault-docker").TaskConfigSchema()
	must.NoError(t, err)
	for body, want := range map[string]any{
		``: nil,
		`auth { username = "u" }`: map[string]any{"username": "u", "password": nil, "email": nil, "server_address": nil,
			"vault_path": "", "username_key": "username", "password_key": "password", "vault": "default"},
		`auth { vault_path = "kv/x" }`: map[string]any{"username": nil, "password": nil, "email": nil, "server_address": nil,
			"vault_path": "kv/x", "username_key": "username", "password_key": "password", "vault": "default"},
	} {
		raw, err := drivertest.Encode(t, schema, "image = \"x\"\n"+body)
		must.NoError(t, err)
		var config map[string]any
		must.NoError(t, base.MsgPackDecode(raw, &config))
		must.Eq(t, want, config["auth"])
	}
}

func TestOurOptionsAreNotTheWrappedDrivers(t *testing.T) {
	for _, wraps := range Drivers() {
		p := newPlugin(t, wraps, "vault-"+wraps)
		inner, err := p.inner.ConfigSchema()
		must.NoError(t, err)
		for key := range ConfigSpec(wraps, p.name) {
			must.MapNotContainsKey(t, inner.GetObject().Attributes, key)
		}
		inner, err = p.inner.TaskConfigSchema()
		must.NoError(t, err)
		for key, option := range TaskConfigSpec(wraps) {
			if theirs := blockOf(inner, key); theirs != nil {
				for ours := range option.GetBlockValue().GetNested().GetObject().GetAttributes() {
					must.MapNotContainsKey(t, theirs, ours)
				}
				continue
			}
			must.MapNotContainsKey(t, inner.GetObject().Attributes, key)
		}
	}
}

func TestDockerKeepsForeignContainersBesideTheBuiltIn(t *testing.T) {
	for sentence, c := range map[string]struct {
		name, body string
		removes    bool
	}{
		"nothing set":                      {"vault-docker", ``, false},
		"an empty gc block":                {"vault-docker", `gc {}`, false},
		"another gc option":                {"vault-docker", `gc { image = false }`, false},
		"an empty dangling block":          {"vault-docker", `gc { dangling_containers {} }`, false},
		"another dangling option":          {"vault-docker", `gc { dangling_containers { period = "10m" } }`, false},
		"asked for":                        {"vault-docker", `gc { dangling_containers { enabled = true } }`, true},
		"published as docker":              {"docker", ``, true},
		"published as docker, partly set":  {"docker", `gc { dangling_containers { period = "10m" } }`, true},
		"published as docker, switched of": {"docker", `gc { dangling_containers { enabled = false } }`, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			gc := options(t, newPlugin(t, "docker", c.name), c.body)["gc"].(map[string]any)
			must.Eq(t, "3m", gc["image_delay"].(string))
			dangling := gc["dangling_containers"].(map[string]any)
			must.Eq(t, c.removes, dangling["enabled"].(bool))
			must.Eq(t, "5m", dangling["creation_grace"].(string))
		})
	}
}

func TestDefaultsUnderTheWrappedDriversNameAreItsOwn(t *testing.T) {
	must.True(t, options(t, newPlugin(t, "raw_exec", "vault-raw_exec"), "")["enabled"].(bool))
	must.False(t, options(t, newPlugin(t, "raw_exec", "raw_exec"), "")["enabled"].(bool))
	must.Eq(t, "bind", options(t, newPlugin(t, "exec", "vault-exec"), "")["filesystem"].(string))
	must.Eq(t, "chroot", options(t, newPlugin(t, "exec", "exec"), "")["filesystem"].(string))
	must.SliceEmpty(t, options(t, newPlugin(t, "exec", "exec"), "")["denied_users"].([]any))
}

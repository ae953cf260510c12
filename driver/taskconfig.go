package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"golang.org/x/sys/unix"
)

// TaskConfig is our part of a task's config block; the wrapped driver reads its own part from the same bytes.
type TaskConfig struct {
	Vaults      []VaultConfig            `codec:"vault"`
	Templates   []TemplateConfig         `codec:"template"`
	Secrets     map[string]*SecretConfig `codec:"secret"`
	PKIs        map[string]*PKIConfig    `codec:"pki"`
	KillSignal  string                   `codec:"kill_signal"`
	KillTimeout string                   `codec:"kill_timeout"`
	Auth        *ImageAuthConfig         `codec:"auth"`
	Image       string                   `codec:"image"` // the wrapped driver's, which says where the credentials go

	killTimeout time.Duration
	blocks      []*product // templates in their order, then secrets and certificates by name
}

// VaultConfig is one vault block: which Vault, as whom, and what the task sees of the token.
type VaultConfig struct {
	Name         string `codec:"name"`
	Role         string `codec:"role"`
	Cluster      string `codec:"cluster"`
	Namespace    string `codec:"namespace"`
	Identity     string `codec:"identity"`
	IdentityFile string `codec:"identity_file"`
	Env          bool   `codec:"env"`
	File         bool   `codec:"file"`
	ChangeMode   string `codec:"change_mode"`
	ChangeSignal string `codec:"change_signal"`

	Policies []string `codec:"policies"` // of a token by a token role
}

// TemplateConfig is one template block, with the fields and meaning of Nomad's own
// (https://developer.hashicorp.com/nomad/docs/job-specification/template), plus poll_interval and vault.
type TemplateConfig struct {
	Data              string `codec:"data"`
	Source            string `codec:"source"`
	Destination       string `codec:"destination"`
	LeftDelimiter     string `codec:"left_delimiter"`
	RightDelimiter    string `codec:"right_delimiter"`
	ErrorOnMissingKey bool   `codec:"error_on_missing_key"`
	OutputConfig
}

// OutputConfig is what all blocks that make something have in common: whom to ask, whose the files are, and what a change
// of them asks.
type OutputConfig struct {
	Vault        string              `codec:"vault"`
	PollInterval string              `codec:"poll_interval"`
	Once         bool                `codec:"once"`
	Env          bool                `codec:"env"`
	Perms        string              `codec:"perms"`
	UID          int                 `codec:"uid"`
	GID          int                 `codec:"gid"`
	Splay        string              `codec:"splay"`
	Wait         *WaitConfig         `codec:"wait"`
	ChangeMode   string              `codec:"change_mode"`
	ChangeSignal string              `codec:"change_signal"`
	ChangeScript *ChangeScriptConfig `codec:"change_script"`

	perm    fs.FileMode
	splay   time.Duration
	every   time.Duration // poll_interval as it applies: zero for once
	waitMin time.Duration
	waitMax time.Duration
}

// WaitConfig is a template's wait block: how long after a change to wait for more of them.
type WaitConfig struct {
	Min string `codec:"min"`
	Max string `codec:"max"`
}

// ChangeScriptConfig is a template's change_script block; the command runs in the task.
type ChangeScriptConfig struct {
	Command     string   `codec:"command"`
	Args        []string `codec:"args"`
	Timeout     string   `codec:"timeout"`
	FailOnError bool     `codec:"fail_on_error"`

	timeout time.Duration
}

// TaskConfigSpec returns the HCL specification of what TaskConfig reads, to be merged with the wrapped driver's own.
func TaskConfigSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"vault":        hclspec.NewBlockList("vault", hclspec.NewObject(vaultSpec())),
		"template":     hclspec.NewBlockList("template", hclspec.NewObject(templateSpec())),
		"secret":       hclspec.NewBlockMap("secret", []string{"name"}, hclspec.NewObject(secretSpec())),
		"pki":          hclspec.NewBlockMap("pki", []string{"name"}, hclspec.NewObject(pkiSpec())),
		"kill_signal":  attr("kill_signal", "string", `""`),
		"kill_timeout": attr("kill_timeout", "string", `"5s"`),
	}
}

func vaultSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"name":          attr("name", "string", `"default"`),
		"role":          attr("role", "string", `""`),
		"cluster":       attr("cluster", "string", `"default"`),
		"namespace":     attr("namespace", "string", `""`),
		"identity":      attr("identity", "string", `"vault"`),
		"identity_file": attr("identity_file", "string", `""`),
		"policies":      hclspec.NewAttr("policies", "list(string)", false),
		"env":           attr("env", "bool", "false"),
		"file":          attr("file", "bool", "false"),
		"change_mode":   attr("change_mode", "string", `"noop"`),
		"change_signal": attr("change_signal", "string", `""`),
	}
}

func templateSpec() map[string]*hclspec.Spec {
	return withOutput(`"0644"`, map[string]*hclspec.Spec{
		"data":                 attr("data", "string", `""`),
		"source":               attr("source", "string", `""`),
		"destination":          attr("destination", "string", `""`),
		"left_delimiter":       attr("left_delimiter", "string", `"{{"`),
		"right_delimiter":      attr("right_delimiter", "string", `"}}"`),
		"error_on_missing_key": attr("error_on_missing_key", "bool", "false"),
	})
}

// withOutput adds to a block's own options those of OutputConfig.
func withOutput(perms string, own map[string]*hclspec.Spec) map[string]*hclspec.Spec {
	all := map[string]*hclspec.Spec{
		"vault":         attr("vault", "string", `"default"`),
		"poll_interval": attr("poll_interval", "string", `""`),
		"once":          attr("once", "bool", "false"),
		"env":           attr("env", "bool", "false"),
		"perms":         attr("perms", "string", perms),
		"uid":           attr("uid", "number", "-1"),
		"gid":           attr("gid", "number", "-1"),
		"splay":         attr("splay", "string", `"5s"`),
		"change_mode":   attr("change_mode", "string", `"restart"`),
		"change_signal": attr("change_signal", "string", `""`),
		"wait": hclspec.NewBlock("wait", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"min": attr("min", "string", `"5s"`),
			"max": attr("max", "string", `""`),
		})),
		"change_script": hclspec.NewBlock("change_script", false, hclspec.NewObject(map[string]*hclspec.Spec{
			"command":       hclspec.NewAttr("command", "string", true),
			"args":          hclspec.NewAttr("args", "list(string)", false),
			"timeout":       attr("timeout", "string", `"5s"`),
			"fail_on_error": attr("fail_on_error", "bool", "false"),
		})),
	}
	maps.Copy(all, own)
	return all
}

func attr(name, kind, value string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, kind, false), hclspec.NewLiteral(value))
}

// maxBlocks bounds what one task asks of the plugin that all tasks of a node share. A block has at least a file or a variable of its own.
const maxBlocks = 256

// validate checks every value by itself and fills in what it means; every is the poll interval of a block that sets
// none. The error names the field.
func (c *TaskConfig) validate(every time.Duration) error {
	var err error
	if c.killTimeout, err = duration("kill_timeout", c.KillTimeout); err != nil {
		return err
	}
	if err := checkSignal("kill_signal", &c.KillSignal, true); err != nil {
		return err
	}
	if err := c.validateVaults(); err != nil {
		return err
	}
	if err := c.validateAuth(); err != nil {
		return err
	}
	c.blocks = nil
	for i := range c.Templates {
		c.blocks = append(c.blocks, c.Templates[i].product(i))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Secrets)) {
		c.blocks = append(c.blocks, c.Secrets[name].product(name))
	}
	for _, name := range slices.Sorted(maps.Keys(c.PKIs)) {
		c.blocks = append(c.blocks, c.PKIs[name].product(name))
	}
	if n := len(c.blocks); n > maxBlocks {
		return fmt.Errorf("%d template, secret and pki blocks, where a task may have %d: put what belongs together into one template, or into "+
			"another task", n, maxBlocks)
	}
	for _, b := range c.blocks {
		if err := c.validateBlock(b, every); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return nil
}

func (c *TaskConfig) validateBlock(b *product, every time.Duration) error {
	if b.Vault != "default" && !c.has(b.Vault) {
		return fmt.Errorf("vault = %q: the task has no vault block with that name", b.Vault)
	}
	if err := b.config.check(); err != nil {
		return err
	}
	return b.OutputConfig.validate(every)
}

// permitted checks what the operator decides: which clusters there are, which policies tasks of a Nomad namespace may have, and how often a
// template may ask. Only a start asks this; a task that runs is not ended because the operator has changed his mind.
func (c *TaskConfig) permitted(op Config, namespace string) error {
	for _, v := range c.Vaults {
		if err := op.admits(v, namespace); err != nil {
			return fmt.Errorf("vault %q: %w", v.Name, err)
		}
	}
	for _, b := range c.blocks {
		if b.PollInterval != "" && !b.Once && b.every < op.MinPollInterval {
			return fmt.Errorf("%s: poll_interval %s is below the %s that this node's operator allows (min_poll_interval)",
				b.name, b.every, op.MinPollInterval)
		}
	}
	return c.permittedAuth(op)
}

func (c *TaskConfig) validateVaults() error {
	names, shown := map[string]bool{}, ""
	for i := range c.Vaults {
		v := &c.Vaults[i]
		if names[v.Name] {
			return fmt.Errorf("vault: two blocks are named %q: give each its own name", v.Name)
		}
		names[v.Name] = true
		if v.Env && shown != "" {
			return fmt.Errorf("vault %q: env = true is set in vault %q too, and there is one VAULT_TOKEN: use file = true here", v.Name, shown)
		}
		if v.Env {
			shown = v.Name
		}
		if err := v.validate(); err != nil {
			return fmt.Errorf("vault %q: %w", v.Name, err)
		}
	}
	return nil
}

// blockName is what can stand in the name of a file.
var blockName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)

var errBlockName = errors.New("name: use letters, digits, -, _ and ., which is not the first")

func (v *VaultConfig) validate() error {
	if !blockName.MatchString(v.Name) {
		return errBlockName
	}
	if v.Identity == "" && v.IdentityFile == "" {
		return errors.New(`identity is empty: name the task's identity block, for example identity = "vault"`)
	}
	if !slices.Contains([]string{"noop", "signal", "restart"}, v.ChangeMode) {
		return fmt.Errorf(`change_mode %q is unknown: use "noop", "signal" or "restart"`, v.ChangeMode)
	}
	if v.ChangeMode != "signal" && v.ChangeSignal != "" {
		return errors.New(`change_signal is set but change_mode is not "signal"`)
	}
	if err := validatePolicies(v.Policies); err != nil {
		return err
	}
	return checkSignal("change_signal", &v.ChangeSignal, v.ChangeMode != "signal")
}

func (o *OutputConfig) validate(every time.Duration) error {
	if o.UID < -1 || o.GID < -1 {
		return errors.New("uid and gid are numbers from 0, or -1 for the default")
	}
	perm, err := strconv.ParseUint(o.Perms, 8, 12)
	if err != nil || perm > 0o777 {
		return fmt.Errorf(`perms %q is not an octal file mode such as "0600"`, o.Perms)
	}
	o.perm = fs.FileMode(perm)
	if err := o.validateTimes(every); err != nil {
		return err
	}
	return o.validateChange()
}

func (o *OutputConfig) validateTimes(every time.Duration) (err error) {
	if o.splay, err = duration("splay", o.Splay); err != nil {
		return err
	}
	o.every = every
	if o.PollInterval != "" {
		o.every, err = duration("poll_interval", o.PollInterval)
	}
	if o.Once {
		o.every = 0
	}
	if err != nil {
		return err
	}
	if o.Wait == nil {
		return nil
	}
	if o.waitMin, err = duration("wait.min", o.Wait.Min); err != nil {
		return err
	}
	o.waitMax = 4 * o.waitMin // consul-template's default
	if o.Wait.Max == "" {
		return nil
	}
	if o.waitMax, err = duration("wait.max", o.Wait.Max); err == nil && o.waitMax < o.waitMin {
		err = fmt.Errorf("wait.max %s is shorter than wait.min %s", o.waitMax, o.waitMin)
	}
	return err
}

func (o *OutputConfig) validateChange() error {
	switch o.ChangeMode {
	case "noop", "restart", "script":
	case "signal":
		if o.Env {
			return errors.New(`change_mode "signal" with env = true: a running process cannot see a new environment; use "restart"`)
		}
	default:
		return fmt.Errorf(`change_mode %q is unknown: use "noop", "signal", "script" or "restart"`, o.ChangeMode)
	}
	if o.ChangeMode != "signal" && o.ChangeSignal != "" {
		return errors.New(`change_signal is set but change_mode is not "signal"`)
	}
	if err := checkSignal("change_signal", &o.ChangeSignal, o.ChangeMode != "signal"); err != nil {
		return err
	}
	if (o.ChangeMode == "script") != (o.ChangeScript != nil) {
		return errors.New(`change_mode "script" and a change_script block go together: one of them is missing`)
	}
	if o.ChangeScript == nil {
		return nil
	}
	return o.ChangeScript.validate()
}

func (s *ChangeScriptConfig) validate() (err error) {
	if s.Command == "" {
		return errors.New("change_script.command is empty: name a program of the task")
	}
	s.timeout, err = duration("change_script.timeout", s.Timeout)
	if err == nil && s.timeout == 0 {
		err = errors.New(`change_script.timeout is zero: give the script time, for example "5s"`)
	}
	return err
}

func duration(field, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s %q is not a duration such as \"30s\"", field, value)
	}
	return d, nil
}

// checkSignal accepts the names the kernel has on this platform, with SIG in front as Nomad writes them, and puts them in
// capitals.
func checkSignal(field string, name *string, mayBeEmpty bool) error {
	switch *name = strings.ToUpper(*name); {
	case *name == "" && mayBeEmpty:
		return nil
	case *name == "":
		return fmt.Errorf(`%s is missing: name a signal such as "SIGHUP"`, field)
	case unix.SignalNum(*name) == 0:
		return fmt.Errorf(`%s %q is not a signal: use a name such as "SIGHUP" or "SIGUSR1"`, field, *name)
	}
	return nil
}

func (c *TaskConfig) has(vault string) bool {
	return slices.ContainsFunc(c.Vaults, func(v VaultConfig) bool { return v.Name == vault })
}

// vault returns the block of that name; a task without one uses the defaults of the plugin's configuration.
func (c *TaskConfig) vault(name string) VaultConfig {
	for _, v := range c.Vaults {
		if v.Name == name {
			return v
		}
	}
	return VaultConfig{Name: name, Cluster: "default", Identity: "vault", ChangeMode: "noop"}
}

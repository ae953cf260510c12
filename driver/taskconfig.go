package driver

import (
	"errors"
	"fmt"
	"io/fs"
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
	Vaults      []VaultConfig    `codec:"vault"`
	Templates   []TemplateConfig `codec:"template"`
	KillSignal  string           `codec:"kill_signal"`
	KillTimeout string           `codec:"kill_timeout"`
	Auth        *ImageAuthConfig `codec:"auth"`

	killTimeout time.Duration
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
}

// TemplateConfig is one template block, with the fields and meaning of Nomad's own
// (https://developer.hashicorp.com/nomad/docs/job-specification/template), plus poll_interval and vault.
type TemplateConfig struct {
	Data              string              `codec:"data"`
	Source            string              `codec:"source"`
	Destination       string              `codec:"destination"`
	Env               bool                `codec:"env"`
	Perms             string              `codec:"perms"`
	UID               int                 `codec:"uid"`
	GID               int                 `codec:"gid"`
	LeftDelimiter     string              `codec:"left_delimiter"`
	RightDelimiter    string              `codec:"right_delimiter"`
	ErrorOnMissingKey bool                `codec:"error_on_missing_key"`
	Once              bool                `codec:"once"`
	Splay             string              `codec:"splay"`
	Wait              *WaitConfig         `codec:"wait"`
	ChangeMode        string              `codec:"change_mode"`
	ChangeSignal      string              `codec:"change_signal"`
	ChangeScript      *ChangeScriptConfig `codec:"change_script"`
	PollInterval      string              `codec:"poll_interval"`
	Vault             string              `codec:"vault"`

	perm        fs.FileMode
	splay       time.Duration
	every       time.Duration // poll_interval as it applies: zero for once
	waitMin     time.Duration
	waitMax     time.Duration
	destination string // slash path below the allocation's directory
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
		"env":           attr("env", "bool", "false"),
		"file":          attr("file", "bool", "false"),
		"change_mode":   attr("change_mode", "string", `"noop"`),
		"change_signal": attr("change_signal", "string", `""`),
	}
}

func templateSpec() map[string]*hclspec.Spec {
	return map[string]*hclspec.Spec{
		"data":                 attr("data", "string", `""`),
		"source":               attr("source", "string", `""`),
		"destination":          attr("destination", "string", `""`),
		"env":                  attr("env", "bool", "false"),
		"perms":                attr("perms", "string", `"0644"`),
		"uid":                  attr("uid", "number", "-1"),
		"gid":                  attr("gid", "number", "-1"),
		"left_delimiter":       attr("left_delimiter", "string", `"{{"`),
		"right_delimiter":      attr("right_delimiter", "string", `"}}"`),
		"error_on_missing_key": attr("error_on_missing_key", "bool", "false"),
		"once":                 attr("once", "bool", "false"),
		"splay":                attr("splay", "string", `"5s"`),
		"change_mode":          attr("change_mode", "string", `"restart"`),
		"change_signal":        attr("change_signal", "string", `""`),
		"poll_interval":        attr("poll_interval", "string", `""`),
		"vault":                attr("vault", "string", `"default"`),
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
}

func attr(name, kind, value string) *hclspec.Spec {
	return hclspec.NewDefault(hclspec.NewAttr(name, kind, false), hclspec.NewLiteral(value))
}

// validate checks every value by itself and fills in what it means; every is the poll interval of a template that sets
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
	for i := range c.Templates {
		t := &c.Templates[i]
		if t.Vault != "default" && !c.has(t.Vault) {
			return fmt.Errorf("template %s: vault = %q: the task has no vault block with that name", t.label(i), t.Vault)
		}
		if err := t.validate(every); err != nil {
			return fmt.Errorf("template %s: %w", t.label(i), err)
		}
	}
	return nil
}

// permitted checks what the operator decides: which clusters there are and how often a template may ask. Only a start asks
// this; a task that runs is not ended because the operator has changed his mind.
func (c *TaskConfig) permitted(op Config) error {
	for _, v := range c.Vaults {
		if _, err := op.cluster(v.Cluster); err != nil {
			return fmt.Errorf("vault %q: %w", v.Name, err)
		}
	}
	for i, t := range c.Templates {
		if t.PollInterval != "" && !t.Once && t.every < op.MinPollInterval {
			return fmt.Errorf("template %s: poll_interval %s is below the %s that this node's operator allows (min_poll_interval)",
				t.label(i), t.every, op.MinPollInterval)
		}
	}
	return nil
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

// blockName is what can stand in the name of a token file.
var blockName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (v *VaultConfig) validate() error {
	if !blockName.MatchString(v.Name) {
		return errors.New("name: use letters, digits, - and _")
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
	return checkSignal("change_signal", &v.ChangeSignal, v.ChangeMode != "signal")
}

// label is how messages name a template: by its destination, or by its place where it has none.
func (t *TemplateConfig) label(i int) string {
	if t.Destination != "" {
		return strconv.Quote(t.Destination)
	}
	return fmt.Sprintf("number %d", i+1)
}

func (t *TemplateConfig) validate(every time.Duration) error {
	switch {
	case t.Destination == "":
		return errors.New(`destination is missing: name a file such as "secrets/app.env"`)
	case t.Data == "" && t.Source == "":
		return errors.New("neither data nor source is set: give the template's text, or the file it is in")
	case t.Data != "" && t.Source != "":
		return errors.New("both data and source are set: keep one")
	case t.UID < -1 || t.GID < -1:
		return errors.New("uid and gid are numbers from 0, or -1 for the plugin's own")
	}
	perm, err := strconv.ParseUint(t.Perms, 8, 12)
	if err != nil || perm > 0o777 {
		return fmt.Errorf(`perms %q is not an octal file mode such as "0600"`, t.Perms)
	}
	t.perm = fs.FileMode(perm)
	if err := t.validateTimes(every); err != nil {
		return err
	}
	return t.validateChange()
}

func (t *TemplateConfig) validateTimes(every time.Duration) (err error) {
	if t.splay, err = duration("splay", t.Splay); err != nil {
		return err
	}
	t.every = every
	if t.PollInterval != "" {
		t.every, err = duration("poll_interval", t.PollInterval)
	}
	if t.Once {
		t.every = 0
	}
	if err != nil {
		return err
	}
	if t.Wait == nil {
		return nil
	}
	if t.waitMin, err = duration("wait.min", t.Wait.Min); err != nil {
		return err
	}
	t.waitMax = 4 * t.waitMin // consul-template's default
	if t.Wait.Max == "" {
		return nil
	}
	if t.waitMax, err = duration("wait.max", t.Wait.Max); err == nil && t.waitMax < t.waitMin {
		err = fmt.Errorf("wait.max %s is shorter than wait.min %s", t.waitMax, t.waitMin)
	}
	return err
}

func (t *TemplateConfig) validateChange() error {
	switch t.ChangeMode {
	case "noop", "restart", "script":
	case "signal":
		if t.Env {
			return errors.New(`change_mode "signal" with env = true: a running process cannot see a new environment; use "restart"`)
		}
	default:
		return fmt.Errorf(`change_mode %q is unknown: use "noop", "signal", "script" or "restart"`, t.ChangeMode)
	}
	if t.ChangeMode != "signal" && t.ChangeSignal != "" {
		return errors.New(`change_signal is set but change_mode is not "signal"`)
	}
	if err := checkSignal("change_signal", &t.ChangeSignal, t.ChangeMode != "signal"); err != nil {
		return err
	}
	if (t.ChangeMode == "script") != (t.ChangeScript != nil) {
		return errors.New(`change_mode "script" and a change_script block go together: one of them is missing`)
	}
	if t.ChangeScript == nil {
		return nil
	}
	return t.ChangeScript.validate()
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

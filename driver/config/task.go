package config

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

	"golang.org/x/sys/unix"
)

// Task is our part of a task's config block; the wrapped driver reads its own part from the same bytes.
type Task struct {
	Vaults      []Vault            `codec:"vault"`
	Templates   []Template         `codec:"template"`
	Secrets     map[string]*Secret `codec:"secret"`
	PKIs        map[string]*PKI    `codec:"pki"`
	Doors       map[string]*Door   `codec:"door"`
	KillSignal  string             `codec:"kill_signal"`
	KillTimeout string             `codec:"kill_timeout"`
	Auth        *ImageAuth         `codec:"auth"`
	Image       string             `codec:"image"` // the wrapped driver's, which says where the credentials go

	KillAfter time.Duration `codec:"-"` // what kill_timeout means

	unknown []string // doors that the job only names and the operator does not have
}

// Block is a template, secret, pki or door block as the job's author wrote it. String is how messages name it.
type Block interface {
	fmt.Stringer
	Common() *Output
	check() error
}

// Vault is one vault block: which Vault, as whom, and what the task sees of the token.
type Vault struct {
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

	operators bool // it is of an operator's door
}

// Template is one template block, with the fields and meaning of Nomad's own
// (https://developer.hashicorp.com/nomad/docs/job-specification/template), plus poll_interval and vault.
type Template struct {
	Data              string `codec:"data"`
	Source            string `codec:"source"`
	Destination       string `codec:"destination"`
	LeftDelimiter     string `codec:"left_delimiter"`
	RightDelimiter    string `codec:"right_delimiter"`
	ErrorOnMissingKey bool   `codec:"error_on_missing_key"`
	Output

	number int // of the block in its task, from 1
}

// String names the template by its destination, or by its number where it has none.
func (t *Template) String() string {
	if t.Destination != "" {
		return fmt.Sprintf("template %q", t.Destination)
	}
	return fmt.Sprintf("template number %d", t.number)
}

// Output is what all blocks that make something have in common: whom to ask, whose the files are, and what a change
// of them asks.
type Output struct {
	Vault        string        `codec:"vault"`
	PollInterval string        `codec:"poll_interval"`
	Once         bool          `codec:"once"`
	Env          bool          `codec:"env"`
	Perms        string        `codec:"perms"`
	UID          int           `codec:"uid"`
	GID          int           `codec:"gid"`
	Splay        string        `codec:"splay"`
	Wait         *Wait         `codec:"wait"`
	ChangeMode   string        `codec:"change_mode"`
	ChangeSignal string        `codec:"change_signal"`
	ChangeScript *ChangeScript `codec:"change_script"`

	// What Validate makes of the options above.

	Perm      fs.FileMode   `codec:"-"`
	SplayMax  time.Duration `codec:"-"`
	PollEvery time.Duration `codec:"-"` // zero for once
	WaitMin   time.Duration `codec:"-"`
	WaitMax   time.Duration `codec:"-"`
}

// Common returns what a block has in common with the others.
func (o *Output) Common() *Output { return o }

// Wait is a template's wait block: how long after a change to wait for more of them.
type Wait struct {
	Min string `codec:"min"`
	Max string `codec:"max"`
}

// ChangeScript is a template's change_script block; the command runs in the task.
type ChangeScript struct {
	Command     string   `codec:"command"`
	Args        []string `codec:"args"`
	Timeout     string   `codec:"timeout"`
	FailOnError bool     `codec:"fail_on_error"`

	Limit time.Duration `codec:"-"` // what timeout means
}

// maxBlocks bounds what one task asks of the plugin that all tasks of a node share. A block has at least a file or a
// variable of its own.
const maxBlocks = 256

// Validate checks every value by itself and fills in what it means, with what the operator has set for all tasks. The
// error names the field.
func (c *Task) Validate(op Operator) error {
	err := c.resolveDoors(op)
	if err != nil {
		return err
	}
	c.label()
	if c.KillAfter, err = duration("kill_timeout", c.KillTimeout); err != nil {
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
	blocks := c.Blocks()
	if n := len(blocks); n > maxBlocks {
		return fmt.Errorf("%d template, secret, pki and door blocks, where a task may have %d: put what belongs together "+
			"into one template, or into "+
			"another task", n, maxBlocks)
	}
	for _, b := range blocks {
		if err := c.validateBlock(b, op.PollInterval); err != nil {
			return fmt.Errorf("%s: %w", b, err)
		}
	}
	return c.validateDoors()
}

// Blocks returns the blocks that something is rendered of: templates in their order, then secrets, certificates and
// doors by name.
func (c *Task) Blocks() (all []Block) {
	for i := range c.Templates {
		all = append(all, &c.Templates[i])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Secrets)) {
		all = append(all, c.Secrets[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.PKIs)) {
		all = append(all, c.PKIs[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Doors)) {
		all = append(all, c.Doors[name])
	}
	return all
}

// label tells the blocks what they are called.
func (c *Task) label() {
	for i := range c.Templates {
		c.Templates[i].number = i + 1
	}
	for name, s := range c.Secrets {
		s.Label = name
	}
	for name, p := range c.PKIs {
		p.Label = name
	}
	for name, d := range c.Doors {
		d.Label = name
	}
}

func (c *Task) validateBlock(b Block, every time.Duration) error {
	d, isDoor := b.(*Door)
	if name := b.Common().Vault; name != "default" && !c.HasVault(name) && !(isDoor && d.operators) {
		return fmt.Errorf("vault = %q: the task has no vault block with that name", name)
	}
	if err := b.check(); err != nil {
		return err
	}
	return b.Common().validate(every)
}

// Permit checks what the operator decides: which clusters there are, which policies tasks of a Nomad namespace may
// have, and how often a template may ask. Only a start asks this; a task that runs is not ended because the operator
// has changed his mind.
func (c *Task) Permit(op Operator, namespace string) error {
	for _, v := range c.Vaults {
		if err := op.PermitVault(v, namespace); err != nil {
			return fmt.Errorf("vault %q: %w", v.Name, err)
		}
	}
	for _, b := range c.Blocks() {
		if o := b.Common(); o.PollInterval != "" && !o.Once && o.PollEvery < op.MinPollInterval {
			return fmt.Errorf("%s: poll_interval %s is below the %s that this node's operator allows (min_poll_interval)",
				b, o.PollEvery, op.MinPollInterval)
		}
	}
	if err := c.permitDoors(op, namespace); err != nil {
		return err
	}
	return c.permittedAuth(op)
}

func (c *Task) validateVaults() error {
	names, shown := map[string]bool{}, ""
	for i := range c.Vaults {
		v := &c.Vaults[i]
		if names[v.Name] {
			return fmt.Errorf("vault: two blocks are named %q: give each its own name", v.Name)
		}
		names[v.Name] = true
		if v.Env && shown != "" {
			return fmt.Errorf("vault %q: env = true is set in vault %q too, and there is one VAULT_TOKEN: use file = true here",
				v.Name, shown)
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

func (v *Vault) validate() error {
	if !blockName.MatchString(v.Name) && !v.operators {
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

func (o *Output) validate(every time.Duration) error {
	if o.UID < -1 || o.GID < -1 {
		return errors.New("uid and gid are numbers from 0, or -1 for the default")
	}
	perm, err := strconv.ParseUint(o.Perms, 8, 12)
	if err != nil || perm > 0o777 {
		return fmt.Errorf(`perms %q is not an octal file mode such as "0600"`, o.Perms)
	}
	o.Perm = fs.FileMode(perm)
	if err := o.validateTimes(every); err != nil {
		return err
	}
	return o.validateChange()
}

func (o *Output) validateTimes(every time.Duration) (err error) {
	if o.SplayMax, err = duration("splay", o.Splay); err != nil {
		return err
	}
	o.PollEvery = every
	if o.PollInterval != "" {
		o.PollEvery, err = duration("poll_interval", o.PollInterval)
	}
	if o.Once {
		o.PollEvery = 0
	}
	if err != nil {
		return err
	}
	if o.Wait == nil {
		return nil
	}
	if o.WaitMin, err = duration("wait.min", o.Wait.Min); err != nil {
		return err
	}
	o.WaitMax = 4 * o.WaitMin // consul-template's default
	if o.Wait.Max == "" {
		return nil
	}
	if o.WaitMax, err = duration("wait.max", o.Wait.Max); err == nil && o.WaitMax < o.WaitMin {
		err = fmt.Errorf("wait.max %s is shorter than wait.min %s", o.WaitMax, o.WaitMin)
	}
	return err
}

func (o *Output) validateChange() error {
	switch o.ChangeMode {
	case "noop", "restart", "script":
	case "signal":
		if o.Env {
			return errors.New(`change_mode "signal" with env = true: a running process cannot see a new environment; use ` +
				`"restart"`)
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

func (s *ChangeScript) validate() (err error) {
	if s.Command == "" {
		return errors.New("change_script.command is empty: name a program of the task")
	}
	s.Limit, err = duration("change_script.timeout", s.Timeout)
	if err == nil && s.Limit == 0 {
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

// checkSignal accepts the names the kernel has on this platform, with SIG in front as Nomad writes them, and puts
// them in capitals.
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

// HasVault reports whether the job has a vault block of that name. That of an operator's door is not the job's to ask.
func (c *Task) HasVault(vault string) bool {
	return slices.ContainsFunc(c.Vaults, func(v Vault) bool { return v.Name == vault && !v.operators })
}

// Vault returns the block of that name; a task without one uses the defaults of the plugin's configuration.
func (c *Task) Vault(name string) Vault {
	for _, v := range c.Vaults {
		if v.Name == name {
			return v
		}
	}
	return Vault{Name: name, Cluster: "default", Identity: "vault", ChangeMode: "noop"}
}

func (t *Template) check() error {
	switch {
	case t.Destination == "":
		return errors.New(`destination is missing: name a file such as "secrets/app.env"`)
	case t.Data == "" && t.Source == "":
		return errors.New("neither data nor source is set: give the template's text, or the file it is in")
	case t.Data != "" && t.Source != "":
		return errors.New("both data and source are set: keep one")
	}
	return nil
}

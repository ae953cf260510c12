package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"nomad-driver-vault/driver/door"
)

// Door is one door block: an API, Vault itself, or a database that the task uses with a credential that it never has.
// The values of the credential are templates.
type Door struct {
	URL          string            `codec:"url"`
	Header       map[string]string `codec:"header"`
	Query        map[string]string `codec:"query"`
	Bearer       string            `codec:"bearer"`
	BasicAuth    *BasicAuth        `codec:"basic_auth"`
	ClientCert   *ClientCert       `codec:"client_cert"`
	Methods      []string          `codec:"methods"`
	EncodedSlash bool              `codec:"encoded_slash"`
	Scrub        string            `codec:"scrub"`

	Mode string `codec:"mode"` // of a door to Vault

	Postgres string `codec:"postgres"`
	Username string `codec:"username"`
	Password string `codec:"password"`
	Role     string `codec:"role"`

	Paths         []string `codec:"paths"`
	Insecure      bool     `codec:"insecure"`
	CAPEM         string   `codec:"ca_pem"`
	Listen        int      `codec:"listen"`
	Rate          string   `codec:"rate"`
	MaxConns      int      `codec:"max_conns"`
	IdleTimeout   string   `codec:"idle_timeout"`
	HeaderTimeout string   `codec:"header_timeout"`
	Stale         string   `codec:"stale"`
	Record        string   `codec:"record"`
	Sample        int      `codec:"sample"`

	Of           string `codec:"vault"` // the vault block: of the values, or the one that a door to Vault is for
	PollInterval string `codec:"poll_interval"`

	Label string    `codec:"-"` // of the block
	Spec  door.Spec `codec:"-"` // what the options above mean, but for what the task and the operator add

	output    Output
	operators bool // the job only names it
}

// ID names the door of a task among all of the node.
func (d *Door) ID(task string) string { return task + "/" + d.Label }

// Upstream returns the kind of the door and what it leads to, without what only the upstream is to know.
func (d *Door) Upstream(cluster string) (kind, to string) {
	switch option, u := d.address(); option {
	case "url":
		return "api", u.Scheme + "://" + u.Host
	case "postgres":
		return "postgres", u.Host + u.Path
	}
	return "vault", cluster
}

// address returns the option that has the URL of the upstream, and that URL; a door to Vault has none.
func (d *Door) address() (option string, u *url.URL) {
	if option = "url"; d.Postgres != "" {
		option = "postgres"
	}
	if d.toVault() {
		return "", &url.URL{}
	}
	u, err := url.Parse(cmp.Or(d.Postgres, d.URL))
	if err != nil {
		return option, &url.URL{} // it was checked
	}
	return option, u
}

// Variables is what the names of the variables begin with in which the task finds the door.
func (d *Door) Variables() string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(d.Label)) + "_"
}

// Database is the name of the door's database, "" where the door is to something else.
func (d *Door) Database() string {
	option, u := d.address()
	if option != "postgres" {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/")
}

// firstPort is the one at which PostgreSQL's clients look for a socket in the directory that they are given.
const firstPort = 5432

// PostgresPorts returns the ports of the doors to databases, which are a part of the names of their sockets too: what
// listen says, and of the others each has one of its own, in the order of their names.
func (c *Task) PostgresPorts() map[string]int {
	ports, taken := map[string]int{}, map[int]bool{}
	for name, d := range c.Doors {
		if d.Postgres != "" && d.Listen != 0 {
			ports[name], taken[d.Listen] = d.Listen, true
		}
	}
	next := firstPort
	for _, name := range slices.Sorted(maps.Keys(c.Doors)) {
		if d := c.Doors[name]; d.Postgres == "" || d.Listen != 0 {
			continue
		}
		for taken[next] {
			next++
		}
		ports[name], taken[next] = next, true
	}
	return ports
}

// ErrDoorUnhidden is for tasks of a driver that hides no file of the node from them.
var ErrDoorUnhidden = errors.New("door: a task that sees the node's files can read its identity, and needs no door " +
	"to log in: use vault-exec or vault-docker")

// CheckListen refuses a port where the task has no network of its own, or the container that it is another one.
func (d *Door) CheckListen(ownNetwork bool, networkMode string) error {
	switch {
	case d.Listen == 0:
		return nil
	case !ownNetwork:
		return fmt.Errorf(`listen: the task has no network of its own: write network { mode = "bridge" } in the group, `+
			"or leave listen out and use the socket secrets/%s.sock", d.Label)
	case networkMode != "":
		return errors.New("listen: with network_mode the container is not in the network of its group: leave one of " +
			"them out")
	}
	return nil
}

// validateDoors checks what concerns several blocks.
func (c *Task) validateDoors() error {
	names, ports := map[string]string{}, map[int]string{}
	for _, label := range slices.Sorted(maps.Keys(c.Doors)) {
		d := c.Doors[label]
		variables := d.Variables()
		switch {
		case names[variables] != "":
			return fmt.Errorf("door %q: door %q has the variable %sSOCK too: rename one of them", label, names[variables],
				variables)
		case d.Listen != 0 && ports[d.Listen] != "":
			return fmt.Errorf("door %q: listen: door %q has the port %d too: choose another", label, ports[d.Listen], d.Listen)
		case d.ClientCert != nil && c.PKIs[d.ClientCert.PKI] == nil:
			return fmt.Errorf("door %q: client_cert: the task has no pki block %q: add it", label, d.ClientCert.PKI)
		}
		names[variables], ports[d.Listen] = label, label
	}
	return nil
}

// LogsIn reports whether a door's credential is read with a token for which the task's identity logs in: not where the
// cluster makes tokens by a token role.
func (c Operator) LogsIn(conf *Task, d *Door) bool {
	cluster, err := c.Cluster(conf.Vault(d.Common().Vault).Cluster)
	return err == nil && !cluster.Issues()
}

// permitHidden refuses a door whose credential the task could get without it: by logging in with its identity, or by
// the token that a vault block shows.
func (c *Task) permitHidden(op Operator, d *Door) error {
	v := c.Vault(d.Common().Vault)
	if v.Env || v.File {
		return fmt.Errorf("vault %q shows the task the token that reads the door's credential: leave env and file "+
			"out, or give the door a vault block of its own", v.Name)
	}
	if op.LogsIn(c, d) && !strings.HasPrefix(path.Clean(v.IdentityFile), "private/") {
		return fmt.Errorf(`the task could log in to Vault with its own identity: hide it with `+
			`filepath = "private/%[1]s.jwt" in the identity block, without env, and `+
			`identity_file = "private/%[1]s.jwt" in vault %[2]q`, v.Identity, v.Name)
	}
	return nil
}

// Doors is what the operator sets of all doors.
type Doors struct {
	AllowHosts []string       // that a door may be for, any where empty
	AllowCIDRs []netip.Prefix // of addresses that are else refused: this host's own, loopback and link-local ones
	RecordDir  string         // where the calls are written down; empty: nowhere
	Own        map[string]*OperatorDoor
}

var anywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// DoorSpec returns what a door of a task is opened with. The error names what the operator's cluster has that a door
// does not know, or the host that the operator does not allow.
func (c Operator) DoorSpec(conf *Task, d *Door, task string) (door.Spec, error) {
	s := d.Spec
	s.ID = d.ID(task)
	s.Dial = door.Dial{AllowHosts: c.Doors.AllowHosts, AllowCIDRs: c.Doors.AllowCIDRs}
	if s.Vault == nil {
		option, u := d.address()
		if err := s.Dial.JudgeHost(u.Hostname()); err != nil {
			return s, fmt.Errorf("%s: %w", option, err)
		}
		return s, nil
	}
	v := conf.Vault(d.Common().Vault)
	cluster, err := c.Cluster(v.Cluster)
	if err != nil {
		return s, err
	}
	if option := cmp.Or(cluster.CAPath, cluster.CertFile); option != "" || cluster.TLSSkipVerify {
		return s, fmt.Errorf("a door to Vault knows ca_file and tls_server_name of %s only", cluster.Block())
	}
	s.Dial = door.Dial{AllowCIDRs: anywhere} // it is the operator who has named the cluster
	to := *s.Vault
	to.Address, to.TLSServerName = cluster.Address, cluster.TLSServerName
	to.Namespace = cmp.Or(v.Namespace, cluster.Namespace)
	if cluster.CAFile != "" {
		if to.CAs, err = os.ReadFile(cluster.CAFile); err != nil {
			return s, fmt.Errorf("read ca_file of %s: %w", cluster.Block(), err)
		}
	}
	s.Vault = &to
	return s, nil
}

// BasicAuth is a door's basic_auth block.
type BasicAuth struct {
	Username string `codec:"username"`
	Password string `codec:"password"`
}

// ClientCert is a door's client_cert block: the certificate of a pki block, which it follows.
type ClientCert struct {
	PKI string `codec:"pki"`
}

// String is how messages name it.
func (d *Door) String() string { return fmt.Sprintf("door %q", d.Label) }

// Common is what the block has in common with others. A door's process is never told of a change.
func (d *Door) Common() *Output {
	if d.output.Vault == "" {
		d.output = Output{Vault: cmp.Or(d.Of, "default"), PollInterval: d.PollInterval, Perms: "0600", UID: -1, GID: -1,
			Splay: "0s", ChangeMode: "noop"}
	}
	return &d.output
}

// toVault reports whether the door is one to Vault itself.
func (d *Door) toVault() bool { return d.URL == "" && d.Postgres == "" }

func (d *Door) check() (err error) {
	switch {
	case !blockName.MatchString(d.Label):
		return errBlockName
	case d.Label == "api":
		return errors.New("name: secrets/api.sock is Nomad's own API: choose another name")
	}
	d.Spec = door.Spec{Name: d.Label, MaxConns: d.MaxConns, Record: door.Record{Calls: door.RecordCalls(d.Record),
		Sample: d.Sample}}
	switch {
	case d.URL != "" && d.Postgres != "":
		return errors.New("both url and postgres are set: keep one, and give the other a door of its own")
	case d.URL != "":
		err = d.checkHTTP()
	case d.Postgres != "":
		err = d.checkPostgres()
	case d.Of != "":
		err = d.checkVault()
	}
	return errors.Join(err, d.checkBounds())
}

// own returns an error that names the first of the options that is set and means nothing for the kind of the door.
func own(kind string, others map[string]bool) error {
	for _, option := range slices.Sorted(maps.Keys(others)) {
		if others[option] {
			return fmt.Errorf("%s means nothing for a door to %s: leave it out", option, kind)
		}
	}
	return nil
}

func (d *Door) ofPostgres() map[string]bool {
	return map[string]bool{"username": d.Username != "", "password": d.Password != "", "role": d.Role != ""}
}

func (d *Door) ofHTTP() map[string]bool {
	return map[string]bool{"header": len(d.Header) > 0, "query": len(d.Query) > 0, "bearer": d.Bearer != "",
		"basic_auth": d.BasicAuth != nil, "client_cert": d.ClientCert != nil, "methods": len(d.Methods) > 0,
		"encoded_slash": d.EncodedSlash}
}

func (d *Door) checkHTTP() error {
	if err := own("an API", d.ofPostgres()); err != nil {
		return err
	}
	if d.Mode != "" {
		return own("an API", map[string]bool{"mode": true})
	}
	if err := d.checkOrigin(); err != nil {
		return err
	}
	if err := d.checkCredential(); err != nil {
		return err
	}
	for i, method := range d.Methods {
		d.Methods[i] = strings.ToUpper(method)
		if !httpguts.ValidHeaderFieldName(method) || slices.Contains([]string{"CONNECT", "TRACE"}, d.Methods[i]) {
			return fmt.Errorf(`methods: %q is not a method that a door passes on: use names such as "GET"`, method)
		}
	}
	if err := d.checkPaths(); err != nil {
		return err
	}
	scrub := door.Scrub(cmp.Or(d.Scrub, string(door.ScrubFull)))
	if !slices.Contains([]door.Scrub{door.ScrubFull, door.ScrubHeaders, door.ScrubOff}, scrub) {
		return fmt.Errorf(`scrub %q is unknown: use "full", "headers" or "off"`, d.Scrub)
	}
	d.Spec.HTTP = &door.HTTP{URL: d.URL, Methods: d.Methods, Paths: d.Paths, EncodedSlash: d.EncodedSlash, Scrub: scrub,
		Header: d.headerNames(), Query: slices.Sorted(maps.Keys(d.Query)), ClientCert: d.ClientCert != nil,
		CAs: []byte(d.CAPEM)}
	return nil
}

// checkOrigin checks url. The forms that a URL has for a person, such as user:password@ and a fragment, are refused:
// they would be lost, or end in a log.
func (d *Door) checkOrigin() error {
	u, err := url.Parse(d.URL)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || u.Hostname() == "":
		return errors.New(`url: give an origin such as "https://api.example.com/v1"`) // the error may quote a password
	case u.User != nil:
		return errors.New("url: a user and a password do not belong there: use basic_auth")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("url: parameters do not belong there: use query for those of the credential")
	case u.Scheme == "http" && !d.Insecure:
		return errors.New("url: over http everybody on the way can read the credential: use https, or set insecure = true")
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("url: scheme %q is unknown: use https", u.Scheme)
	case slices.Contains(strings.Split(u.Path, "/"), "..") || strings.Contains(u.Path, "//"):
		return errors.New("url: its path has empty or dot segments: write it without them")
	}
	return nil
}

// hopByHop are the headers that belong to a connection or are made by the client itself.
var hopByHop = []string{"Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade"}

// checkCredential checks what the door adds to a call.
func (d *Door) checkCredential() error {
	authorization := 0
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		is := func(other string) bool { return strings.EqualFold(name, other) }
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(hopByHop, is) {
			return fmt.Errorf("header: %q is not a header that a credential can be in", name)
		}
		if is("Authorization") {
			authorization++
		}
	}
	if d.Bearer != "" {
		authorization++
	}
	if d.BasicAuth != nil {
		authorization++
	}
	switch {
	case authorization > 1:
		return errors.New("bearer, basic_auth and the header Authorization are one and the same header: keep one")
	case d.BasicAuth != nil && (d.BasicAuth.Username == "" || d.BasicAuth.Password == ""):
		return errors.New("basic_auth: username and password are required")
	case d.ClientCert != nil && d.ClientCert.PKI == "":
		return errors.New("client_cert: pki is required: name a pki block of the task")
	case authorization == 0 && len(d.Header)+len(d.Query) == 0 && d.ClientCert == nil:
		return errors.New("no credential is set: use header, query, bearer, basic_auth or client_cert")
	}
	return nil
}

// headerNames returns the headers that the credential sets.
func (d *Door) headerNames() []string {
	names := slices.Sorted(maps.Keys(d.Header))
	if d.Bearer != "" || d.BasicAuth != nil {
		names = append(names, "Authorization")
	}
	return names
}

// checkPaths checks paths, which are judged segment by segment.
func (d *Door) checkPaths() error {
	for _, pattern := range d.Paths {
		inner := strings.TrimSuffix(strings.TrimPrefix(pattern, "/"), "*")
		for segment := range strings.SplitSeq(inner, "/") {
			if segment == "." || segment == ".." || segment != "*" && strings.Contains(segment, "*") {
				return fmt.Errorf(`paths: %q: "*" is a whole segment or the end, and there are no dot segments`, pattern)
			}
		}
		if !d.toVault() && !strings.HasPrefix(pattern, "/") || strings.ContainsAny(pattern, "?#%\\;") ||
			strings.Contains(pattern, "//") {
			return fmt.Errorf(`paths: %q is not a path such as "/v1/items/*"`, pattern)
		}
	}
	return nil
}

func (d *Door) checkVault() error {
	others := d.ofHTTP()
	maps.Copy(others, d.ofPostgres())
	others["insecure"], others["ca_pem"], others["scrub"] = d.Insecure, d.CAPEM != "", d.Scrub != ""
	if err := own("Vault", others); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "force", "passthrough"}, d.Mode) {
		return fmt.Errorf(`mode %q is unknown: use "force" or "passthrough"`, d.Mode)
	}
	d.Spec.Vault = &door.Vault{Paths: d.Paths, Passthrough: d.Mode == "passthrough"}
	return d.checkPaths()
}

func (d *Door) checkPostgres() error {
	others := d.ofHTTP()
	others["paths"], others["mode"], others["scrub"] = len(d.Paths) > 0, d.Mode != "", d.Scrub != ""
	if err := own("PostgreSQL", others); err != nil {
		return err
	}
	u, err := url.Parse(d.Postgres)
	if err != nil || !slices.Contains([]string{"postgres", "postgresql"}, u.Scheme) || u.Hostname() == "" ||
		strings.Trim(u.Path, "/") == "" {
		return errors.New(`postgres: give a database such as "postgres://db.example.com:5432/app?sslmode=verify-full"`)
	}
	mode := u.Query().Get("sslmode")
	switch {
	case u.User != nil || u.Query().Has("user") || u.Query().Has("password"):
		return errors.New("postgres: a user and a password do not belong there: use username and password")
	case mode != "" && mode != "verify-full" && !d.Insecure:
		return fmt.Errorf("postgres: with sslmode=%s anybody can take the server's place: use verify-full, or set "+
			"insecure = true", mode)
	case d.Username == "" || d.Password == "":
		return errors.New("username and password are required: give templates that read them from one secret")
	}
	d.Spec.Postgres = &door.Postgres{URL: d.Postgres, Role: d.Role, CAs: []byte(d.CAPEM)}
	return nil
}

// connsMost bounds max_conns: the doors of a node share the files and the memory of one process.
const connsMost = 1000

// checkBounds checks what all kinds of doors have.
func (d *Door) checkBounds() (err error) {
	s := &d.Spec
	idle := "5m"
	if d.Postgres != "" {
		idle = "0s" // pools keep sessions, and LISTEN waits
	}
	for _, of := range []struct {
		option, value, without string
		to                     *time.Duration
	}{{"idle_timeout", d.IdleTimeout, idle, &s.IdleTimeout}, {"header_timeout", d.HeaderTimeout, "10s", &s.HeaderTime},
		{"stale", d.Stale, "0s", &s.Stale}} { // no task stops working because Vault is away
		if *of.to, err = duration(of.option, cmp.Or(of.value, of.without)); err != nil {
			return err
		}
	}
	switch {
	case s.HeaderTime == 0:
		return errors.New(`header_timeout is zero: give a client time, for example "10s"`)
	case d.Listen < 0 || d.Listen > 65535:
		return fmt.Errorf("listen: %d is not a port: use one from 1 to 65535, or leave it out", d.Listen)
	case d.MaxConns < 0 || d.MaxConns > connsMost:
		return fmt.Errorf("max_conns is a number from 1 to %d, or 0 for the default", connsMost)
	case d.Sample < 0:
		return errors.New("sample is a number from 1: one call of so many is recorded")
	case !slices.Contains([]door.RecordCalls{"", door.RecordAll, door.RecordDenied, door.RecordOff}, s.Record.Calls):
		return fmt.Errorf(`record %q is unknown: use "all", "denied" or "off"`, d.Record)
	}
	s.MaxConns, s.Record.Sample = cmp.Or(s.MaxConns, 100), cmp.Or(s.Record.Sample, 1)
	s.Record.Calls = cmp.Or(s.Record.Calls, door.RecordAll)
	s.Rate, s.Burst, err = rate(d.Rate)
	return err
}

// rate reads "50" or "50:100": so many a second, and so many at once.
func rate(text string) (perSecond float64, burst int, err error) {
	if text == "" {
		return 0, 0, nil
	}
	first, second, both := strings.Cut(text, ":")
	perSecond, err = strconv.ParseFloat(first, 64)
	if both && err == nil {
		burst, err = strconv.Atoi(second)
	} else {
		burst = max(1, int(perSecond))
	}
	if err != nil || !(perSecond > 0 && perSecond <= 1e6) || burst < 1 || burst > 1e6 {
		return 0, 0, fmt.Errorf(`rate %q is not a rate such as "50" or "50:100": calls a second, and calls at once`, text)
	}
	return perSecond, burst, nil
}

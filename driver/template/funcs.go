package template

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"nomad-driver-vault/internal/inode"

	"github.com/hashicorp/consul-template/dependency"
	consul "github.com/hashicorp/consul-template/template"
)

// execution is one execution of one template: its functions, and what they
// have seen.
type execution struct {
	ctx context.Context
	in  Input

	place   *place
	turned  int // turns of ranges, and calls of templates, so far
	deep    int // templates within each other
	scratch scratch

	secrets []readSecret
	hidden  map[string]bool // values that no error may show
}

func newExecution(ctx context.Context, in Input) *execution {
	if in.Budget == nil {
		in.Budget = NewBudget()
	}
	return &execution{ctx: ctx, in: in, place: &place{budget: in.Budget}, hidden: make(map[string]bool)}
}

// readSecret is a secret the template was given, by the path it asked for.
type readSecret struct {
	path string
	data map[string]any
}

// own are the functions that replace consul-template's.
func (x *execution) own() map[string]any {
	return map[string]any{
		"secret":           x.secret,
		"secrets":          x.list,
		"secretExists":     x.secretExists,
		"pkiCert":          x.pkiCert,
		"env":              x.env,
		"mustEnv":          x.mustEnv,
		"envOrDefault":     x.envOrDefault,
		"file":             x.file,
		"loop":             loop,
		"scratch":          func() *scratch { return &x.scratch },
		"nomadServices":    x.nomadServices,
		"nomadService":     x.nomadService,
		"nomadVar":         x.nomadVar,
		"nomadVarExists":   x.nomadVarExists,
		"nomadVarList":     x.nomadVarList,
		"nomadVarListSafe": x.nomadVarListSafe,
	}
}

// secret reads a path, or writes "key=value" arguments to it.
func (x *execution) secret(args ...string) (any, error) {
	if len(args) == 0 {
		return nil, nil
	}
	if len(args) > 1 {
		return x.write(args)
	}
	path, query, err := splitPath(args[0])
	if err != nil {
		return nil, err
	}
	s, err := outside(x, func() (*Secret, error) { return x.in.Source.Read(x.ctx, path, query) })
	if err != nil {
		return nil, &failed{err, path}
	}
	return x.show(path, s), nil
}

// secretExists reports whether secret would read something at the path: there is a secret, and that version of it is
// neither deleted nor destroyed.
func (x *execution) secretExists(path string) (bool, error) {
	path, query, err := splitPath(path)
	if err != nil {
		return false, err
	}
	there, err := outside(x, func() (bool, error) { return x.in.Source.Exists(x.ctx, path, query) })
	if err != nil {
		return false, &failed{err, path}
	}
	return there, nil
}

// write sends args[1:] to the path args[0]. No answer is a nil secret, which
// {{ with }} takes for false.
func (x *execution) write(args []string) (*Secret, error) {
	path := cleanPath(args[0])
	if path == "" {
		return nil, errors.New("the path is empty")
	}
	data, err := keyValues(args[1:])
	if err != nil {
		return nil, err
	}
	s, err := outside(x, func() (*Secret, error) { return x.in.Source.Write(x.ctx, path, data) })
	if err != nil {
		return nil, &failed{err, path}
	}
	return x.show(path, s), nil
}

// show returns a copy of s for the template, and hides what is secret in it
// from errors. A copy, because functions such as sprig_set change what they
// are given and the Source keeps s for others.
func (x *execution) show(path string, s *Secret) *Secret {
	if s == nil {
		return nil
	}
	c := *s
	c.Data, _ = x.copyHidden(s.Data).(map[string]any)
	c.Warnings = slices.Clone(s.Warnings)
	if s.Auth != nil {
		x.hide(s.Auth.ClientToken, s.Auth.Accessor)
	}
	x.secrets = append(x.secrets, readSecret{path, c.Data})
	return &c
}

func (x *execution) list(path string) ([]string, error) {
	path = cleanPath(path)
	if path == "" {
		return nil, nil
	}
	names, err := outside(x, func() ([]string, error) { return x.in.Source.List(x.ctx, path) })
	if err != nil {
		return nil, &failed{err, path}
	}
	return slices.Sorted(slices.Values(names)), nil
}

// pkiCert issues a certificate and returns it as consul-template does. Unlike
// there, the certificate is never read back from the destination: the Source
// remembers it.
func (x *execution) pkiCert(args ...string) (any, error) {
	if len(args) == 0 {
		return nil, nil
	}
	path, _, err := splitPath(args[0])
	if err != nil {
		return nil, err
	}
	s, err := x.write(append([]string{path}, args[1:]...))
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("no answer from Vault for %q: use a path such as pki/issue/<role>", path)
	}
	return issued(path, s.Data)
}

// Certificate is an answer of Vault's PKI engine in PEM. Key is empty where
// there is none.
type Certificate struct {
	Cert, Key   string
	Authorities string // the issuing one first
}

// Issued reads Vault's answer to a request at a path.
func Issued(path string, data map[string]any) (Certificate, error) {
	p, err := issued(path, data)
	return Certificate{Cert: p.Cert, Key: p.Key, Authorities: strings.Join(p.CAChain, "")}, err
}

func issued(path string, data map[string]any) (dependency.PemEncoded, error) {
	p := pems(data)
	if p.Cert == "" {
		return p, fmt.Errorf("no certificate in PEM form in Vault's answer for %q: use a path such as pki/issue/<role>, "+
			"and no format argument", path)
	}
	return p, nil
}

// pems sorts the PEM blocks of a PKI answer: the key, the certificate, and the
// authorities, the issuing one first.
func pems(data map[string]any) (p dependency.PemEncoded) {
	var text strings.Builder
	for _, field := range []string{"issuing_ca", "ca_chain", "certificate", "private_key"} {
		values, ok := data[field].([]any)
		if !ok {
			values = []any{data[field]}
		}
		for _, v := range values {
			s, _ := v.(string)
			text.WriteString(s + "\n")
		}
	}
	for block, rest := pem.Decode([]byte(text.String())); block != nil; block, rest = pem.Decode(rest) {
		addPEM(&p, block)
	}
	return p
}

func addPEM(p *dependency.PemEncoded, block *pem.Block) {
	text := string(pem.EncodeToMemory(block))
	if strings.HasSuffix(block.Type, "PRIVATE KEY") {
		p.Key = text
		return
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil: // not a certificate: nothing that pkiCert shows
	case !cert.IsCA:
		p.Cert = text
	case !p.CaChainContains(text):
		p.CAChain = append(p.CAChain, text)
		p.CA = p.CAChain[0]
	}
}

func (x *execution) env(name string) (string, error) {
	v, known := x.in.Env[name]
	if !known && ofNode.MatchString(name) {
		return "", &failed{nodeError(name), name}
	}
	if !strings.HasPrefix(name, "NOMAD_") || strings.HasPrefix(name, "NOMAD_TOKEN") {
		x.hideLong(v) // the others that Nomad sets are in many a path, and no secrets
	}
	return v, nil
}

func (x *execution) mustEnv(name string) (string, error) {
	if v, err := x.env(name); v != "" || err != nil {
		return v, err
	}
	return "", fmt.Errorf("environment variable %q is not set or empty: set it in the task's env block", name)
}

// envOrDefault returns def only for a variable that is not there: one that is
// set to nothing was set on purpose.
func (x *execution) envOrDefault(name, def string) (string, error) {
	if _, ok := x.in.Env[name]; ok || ofNode.MatchString(name) {
		return x.env(name)
	}
	return def, nil
}

// file returns the contents of one of the task's files.
func (x *execution) file(path string) (string, error) {
	if path = strings.TrimSpace(path); path == "" {
		return "", nil
	}
	data, err := x.readTaskFile(path)
	if err != nil {
		return "", &failed{fmt.Errorf("read file %q: %w", path, err), path}
	}
	text := string(data)
	x.hideLong(strings.TrimSpace(text))
	return text, nil
}

func (x *execution) readTaskFile(path string) ([]byte, error) {
	name, err := TaskPath(path, x.in.Env)
	if err != nil {
		return nil, err
	}
	root := x.in.Root
	if rest, shared := strings.CutPrefix(name, "alloc/"); shared {
		root, name = x.in.Alloc, rest
	}
	if root == nil {
		return nil, errors.New("the directory is not open to templates")
	}
	return ReadFile(root, name)
}

// ReadFile returns all of a file of the task's own, which links may lead to within root: of a regular one with at most
// MaxOutput bytes. Its error tells no path.
func ReadFile(root *os.Root, name string) ([]byte, error) {
	name, err := inode.Follow(root, name)
	if err != nil {
		return nil, err
	}
	data, _, err := inode.Read(root, name, MaxOutput)
	return data, err
}

// loop returns the numbers from start, or 0, up to but not including stop. It
// replaces consul-template's loop, which leaves a goroutine behind for every
// {{ range }} that ends early.
func loop(args ...any) ([]int64, error) {
	if len(args) == 1 {
		args = []any{0, args[0]}
	}
	if len(args) != 2 {
		return nil, fmt.Errorf("%d arguments, where 1 or 2 are expected", len(args))
	}
	start, err := toInt64(args[0])
	if err != nil {
		return nil, err
	}
	stop, err := toInt64(args[1])
	if err != nil || stop <= start {
		return nil, err
	}
	numbers := make([]int64, stop-start)
	for i := range numbers {
		numbers[i] = start + int64(i)
	}
	return numbers, nil
}

// scratch is consul-template's, without the methods of the lock that is part of that: a template that takes it waits
// for ever.
type scratch struct{ of consul.Scratch }

func (s *scratch) Key(k string) bool                           { return s.of.Key(k) }
func (s *scratch) Get(k string) any                            { return s.of.Get(k) }
func (s *scratch) Set(k string, v any) string                  { return s.of.Set(k, v) }
func (s *scratch) SetX(k string, v any) string                 { return s.of.SetX(k, v) }
func (s *scratch) MapSet(k, mk string, v any) (string, error)  { return s.of.MapSet(k, mk, v) }
func (s *scratch) MapSetX(k, mk string, v any) (string, error) { return s.of.MapSetX(k, mk, v) }
func (s *scratch) MapValues(k string) ([]any, error)           { return s.of.MapValues(k) }

func toInt64(v any) (int64, error) {
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return r.Int(), nil
	case r.CanUint():
		return int64(r.Uint()), nil
	case r.Kind() == reflect.String:
		n, err := strconv.ParseInt(r.String(), 10, 64)
		if err != nil {
			return 0, errors.New("an argument is a string but not a whole number")
		}
		return n, nil
	}
	return 0, fmt.Errorf("an argument has the type %T, not a whole number", v)
}

func cleanPath(path string) string { return strings.Trim(strings.TrimSpace(path), "/") }

// splitPath separates a Vault path from its query parameters.
func splitPath(s string) (string, url.Values, error) {
	u, err := url.Parse(cleanPath(s))
	if err != nil {
		return "", nil, fmt.Errorf("path %q: %w", s, errors.Unwrap(err))
	}
	if u.Path == "" {
		return "", nil, errors.New("the path is empty")
	}
	return u.Path, u.Query(), nil
}

// keyValues reads "key=value" arguments. A wrong one is not quoted: it may be a
// secret.
func keyValues(args []string) (map[string]any, error) {
	data := make(map[string]any)
	for i, arg := range args {
		if arg == "" {
			continue
		}
		k, v, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("argument %d after the path is not key=value", i+1)
		}
		data[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	return data, nil
}

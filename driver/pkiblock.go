package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// PKIConfig is one pki block: a certificate that Vault issues for the task, as files that always fit each other. The
// parameters are named as Vault names them
// (https://developer.hashicorp.com/vault/api-docs/secret/pki#generate-certificate-and-key), the files as everywhere in
// Nomad and Vault.
type PKIConfig struct {
	Path        string            `codec:"path"`
	CommonName  string            `codec:"common_name"`
	AltNames    []string          `codec:"alt_names"`
	IPSANs      []string          `codec:"ip_sans"`
	URISANs     []string          `codec:"uri_sans"`
	TTL         string            `codec:"ttl"`
	Args        map[string]string `codec:"args"`
	CertFile    string            `codec:"cert_file"`
	KeyFile     string            `codec:"key_file"`
	CAFile      string            `codec:"ca_file"`
	ChainFile   string            `codec:"chain_file"`
	BundleFile  string            `codec:"bundle_file"`
	RenewBefore string            `codec:"renew_before"`
	Revoke      bool              `codec:"revoke"`
	OutputConfig

	label       string // of the block
	renewBefore time.Duration
}

func pkiSpec() map[string]*hclspec.Spec {
	spec := withOutput(`"0600"`, map[string]*hclspec.Spec{
		"path":         attr("path", "string", `""`),
		"common_name":  attr("common_name", "string", `""`),
		"alt_names":    hclspec.NewAttr("alt_names", "list(string)", false),
		"ip_sans":      hclspec.NewAttr("ip_sans", "list(string)", false),
		"uri_sans":     hclspec.NewAttr("uri_sans", "list(string)", false),
		"ttl":          attr("ttl", "string", `""`),
		"args":         hclspec.NewBlockAttrs("args", "string", false),
		"cert_file":    attr("cert_file", "string", `""`),
		"key_file":     attr("key_file", "string", `""`),
		"ca_file":      attr("ca_file", "string", `""`),
		"chain_file":   attr("chain_file", "string", `""`),
		"bundle_file":  attr("bundle_file", "string", `""`),
		"renew_before": attr("renew_before", "string", `""`),
		"revoke":       attr("revoke", "bool", "false"),
	})
	for _, name := range []string{"env", "poll_interval"} { // which mean nothing for a certificate
		delete(spec, name)
	}
	return spec
}

// pkiFile is a file that a pki block can make.
type pkiFile struct {
	option, destination string
	private             bool // it has the key
	holds               func(template.Certificate) string
}

// files are those that are asked for.
func (p *PKIConfig) files() []pkiFile {
	all := []pkiFile{
		{"cert_file", p.CertFile, false, func(c template.Certificate) string { return c.Cert }},
		{"key_file", p.KeyFile, true, func(c template.Certificate) string { return c.Key }},
		{"ca_file", p.CAFile, false, func(c template.Certificate) string { return c.Authorities }},
		{"chain_file", p.ChainFile, false, func(c template.Certificate) string { return c.Cert + c.Authorities }},
		{"bundle_file", p.BundleFile, true, func(c template.Certificate) string { return c.Key + c.Cert + c.Authorities }},
	}
	return slices.DeleteFunc(all, func(f pkiFile) bool { return f.destination == "" })
}

func (p *PKIConfig) product(name string) *product {
	p.label = name
	b := &product{OutputConfig: &p.OutputConfig, config: p, name: p.String(), what: p.String(), secret: true}
	for _, f := range p.files() {
		b.parts = append(b.parts, part{key: f.destination, option: f.option, destination: f.destination, public: !f.private})
	}
	return b
}

// String is how messages name it.
func (p *PKIConfig) String() string { return fmt.Sprintf("pki %q", p.label) }

func (p *PKIConfig) check() (err error) {
	switch {
	case !blockName.MatchString(p.label):
		return errBlockName
	case strings.Trim(p.Path, "/ ") == "":
		return errors.New(`path is required: name a role such as "pki/issue/app"`)
	case len(p.files()) == 0:
		return errors.New("no file is asked for: set one of cert_file, key_file, ca_file, chain_file and bundle_file")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Args)) {
		if name == "format" {
			return errors.New("args.format: the files are PEM: leave it out, or use a template")
		}
		if _, own := pkiSpec()[name]; own {
			return fmt.Errorf("args.%[1]s: set %[1]s itself", name)
		}
	}
	if p.Revoke && p.revokedAt() == "" {
		return fmt.Errorf(`revoke: there is no telling where Vault revokes what is issued at %q: use a path such as "pki/issue/app", or leave revoke out`, p.Path)
	}
	if p.RenewBefore == "" {
		return nil
	}
	if p.renewBefore, err = duration("renew_before", p.RenewBefore); err != nil {
		return err
	}
	if life, err := time.ParseDuration(p.TTL); err == nil && p.renewBefore > life/2 {
		return fmt.Errorf("renew_before %s is more than half of ttl %s", p.renewBefore, life)
	}
	return nil
}

// request is what a template would ask with {{ pkiCert }}: for one pass they are the same question.
func (p *PKIConfig) request() vault.Request {
	data := map[string]any{}
	for name, value := range p.Args {
		data[name] = value
	}
	for name, value := range map[string]string{"common_name": p.CommonName, "alt_names": strings.Join(p.AltNames, ","),
		"ip_sans": strings.Join(p.IPSANs, ","), "uri_sans": strings.Join(p.URISANs, ","), "ttl": p.TTL} {
		if value != "" {
			data[name] = value
		}
	}
	r := vault.Request{Op: vault.Write, Path: p.Path, Data: data, Before: p.renewBefore}
	if p.Revoke {
		r.Revoke = p.revokedAt()
	}
	return r
}

// issuingPath is a path of the PKI engine's that issues certificates: its mount, and whether Vault makes the key, too
// (https://developer.hashicorp.com/vault/api-docs/secret/pki#issuing-certificates).
var issuingPath = regexp.MustCompile(`^/?(.+?)/(?:issuer/[^/]+/)?(issue|sign|sign-verbatim)(?:/[^/]+)?/?$`)

// revokedAt is where Vault revokes a certificate of the block: for who has its key, where Vault has made that, so that a policy need not
// grant the revocation of everybody's. It is empty for a path of another kind.
func (p *PKIConfig) revokedAt() string {
	switch m := issuingPath.FindStringSubmatch(p.Path); {
	case m == nil:
		return ""
	case m[2] == "issue":
		return m[1] + "/revoke-with-key"
	default:
		return m[1] + "/revoke"
	}
}

func (p *PKIConfig) prepare(*renderer) (maker, error) {
	return func(ctx context.Context, from *source, _ template.Input) ([][]byte, error) {
		secret, err := from.ask(ctx, p.request())
		var outputs [][]byte
		if err == nil {
			outputs, err = p.outputs(secret)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		return outputs, nil
	}, nil
}

// outputs are the bytes of the files, in their order.
func (p *PKIConfig) outputs(secret *vault.Secret) (outputs [][]byte, err error) {
	c, err := template.Issued(p.Path, secret.Data)
	if err != nil {
		return nil, err
	}
	for _, f := range p.files() {
		if f.private && c.Key == "" {
			return nil, fmt.Errorf("%s: no private key in Vault's answer: use a path such as pki/issue/<role>", f.option)
		}
		outputs = append(outputs, []byte(f.holds(c)))
	}
	return outputs, nil
}

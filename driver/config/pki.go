package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// PKI is one pki block: a certificate that Vault issues for the task, as files that always fit each other. The
// parameters are named as Vault names them
// (https://developer.hashicorp.com/vault/api-docs/secret/pki#generate-certificate-and-key), the files as everywhere in
// Nomad and Vault.
type PKI struct {
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
	Output

	Label      string        `codec:"-"` // of the block
	RenewEarly time.Duration `codec:"-"` // what renew_before means
}

// PKIFile is a file that a pki block can make.
type PKIFile struct {
	Option, Destination string
	Private             bool // it has the key
}

// Files are those that are asked for.
func (p *PKI) Files() []PKIFile {
	all := []PKIFile{
		{"cert_file", p.CertFile, false},
		{"key_file", p.KeyFile, true},
		{"ca_file", p.CAFile, false},
		{"chain_file", p.ChainFile, false},
		{"bundle_file", p.BundleFile, true},
	}
	return slices.DeleteFunc(all, func(f PKIFile) bool { return f.Destination == "" })
}

// String is how messages name it.
func (p *PKI) String() string { return fmt.Sprintf("pki %q", p.Label) }

func (p *PKI) check() (err error) {
	switch {
	case !blockName.MatchString(p.Label):
		return errBlockName
	case strings.Trim(p.Path, "/ ") == "":
		return errors.New(`path is required: name a role such as "pki/issue/app"`)
	case len(p.Files()) == 0:
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
	if p.Revoke && p.RevokedAt() == "" {
		return fmt.Errorf(`revoke: there is no telling where Vault revokes what is issued at %q: use a path such as `+
			`"pki/issue/app", or leave revoke out`, p.Path)
	}
	if p.RenewBefore == "" {
		return nil
	}
	if p.RenewEarly, err = duration("renew_before", p.RenewBefore); err != nil {
		return err
	}
	if life, err := time.ParseDuration(p.TTL); err == nil && p.RenewEarly > life/2 {
		return fmt.Errorf("renew_before %s is more than half of ttl %s", p.RenewEarly, life)
	}
	return nil
}

// issuingPath is a path of the PKI engine's that issues certificates: its mount, and whether Vault makes the key, too
// (https://developer.hashicorp.com/vault/api-docs/secret/pki#issuing-certificates).
var issuingPath = regexp.MustCompile(`^/?(.+?)/(?:issuer/[^/]+/)?(issue|sign|sign-verbatim)(?:/[^/]+)?/?$`)

// RevokedAt is where Vault revokes a certificate of the block: for who has its key, where Vault has made that, so
// that a policy need not grant the revocation of everybody's. It is empty for a path of another kind.
func (p *PKI) RevokedAt() string {
	switch m := issuingPath.FindStringSubmatch(p.Path); {
	case m == nil:
		return ""
	case m[2] == "issue":
		return m[1] + "/revoke-with-key"
	default:
		return m[1] + "/revoke"
	}
}

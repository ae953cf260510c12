package render

import (
	"context"
	"fmt"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
)

type pkiBlock struct{ *config.PKI }

func pkiOutputs(p *config.PKI) (all []output) {
	for _, f := range p.Files() {
		all = append(all, output{key: f.Destination, option: f.Option, destination: f.Destination, public: !f.Private})
	}
	return all
}

// request is what a template would ask with {{ pkiCert }}: within one snapshot they are the same question.
func (p pkiBlock) request() vault.Request {
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
	r := vault.Request{Op: vault.Write, Path: p.Path, Data: data, Before: p.RenewEarly}
	if p.Revoke {
		r.Revoke = p.RevokedAt()
	}
	return r
}

func (p pkiBlock) prepare(*Renderer) (render renderFunc, asks bool, err error) {
	return func(ctx context.Context, from *credentials.Source, _ template.Input) ([][]byte, error) {
		secret, err := from.Ask(ctx, p.request())
		var outputs [][]byte
		if err == nil {
			outputs, err = p.bytes(secret)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		return outputs, nil
	}, true, nil
}

// bytes are those of the files, in their order.
func (p pkiBlock) bytes(secret *vault.Secret) (outputs [][]byte, err error) {
	c, err := template.Issued(p.Path, secret.Data)
	if err != nil {
		return nil, err
	}
	for _, f := range p.Files() {
		if f.Private && c.Key == "" {
			return nil, fmt.Errorf("%s: no private key in Vault's answer: use a path such as pki/issue/<role>", f.Option)
		}
		outputs = append(outputs, []byte(pem(c, f.Option)))
	}
	return outputs, nil
}

// pem returns what the file of that option holds.
func pem(c template.Certificate, option string) string {
	switch option {
	case "cert_file":
		return c.Cert
	case "key_file":
		return c.Key
	case "ca_file":
		return c.Authorities
	case "chain_file":
		return c.Cert + c.Authorities
	default: // bundle_file
		return c.Key + c.Cert + c.Authorities
	}
}

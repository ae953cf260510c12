package render

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/template"
)

// doorBlock makes the credential of a door. Its output is a door.Credential without a generation, as JSON.
type doorBlock struct {
	*config.Door
	pki *config.PKI // of client_cert; nil: none
}

// DoorSum is the key of a door's credential among the sums, which no destination can have.
func DoorSum(name string) string { return "door\x00" + name }

// Door returns the credential of a door, nil where there is none. It has no generation yet. The accessor is not in its
// sum: what a new token reads is most often the same.
func (g *Generation) Door(name string) *door.Credential {
	c := &door.Credential{}
	if output, made := g.Output[DoorSum(name)]; !made || json.Unmarshal(output, c) != nil {
		return nil
	}
	c.Accessor = g.Snapshot.Accessor(g.conf.Doors[name].Common().Vault)
	return c
}

// doorValue is one of the templates of a door.
type doorValue struct {
	option, text string
	put          func(*door.Credential, string)
}

// values are the templates of the door, in the order of their options.
func (d doorBlock) values() (all []doorValue) {
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		all = append(all, doorValue{"header " + name, d.Header[name],
			func(c *door.Credential, value string) { c.Header[name] = value }})
	}
	for _, name := range slices.Sorted(maps.Keys(d.Query)) {
		all = append(all, doorValue{"query " + name, d.Query[name],
			func(c *door.Credential, value string) { c.Query[name] = value }})
	}
	if d.Bearer != "" {
		all = append(all, doorValue{"bearer", d.Bearer,
			func(c *door.Credential, value string) { c.Header["Authorization"] = "Bearer " + value }})
	}
	if b := d.BasicAuth; b != nil {
		all = append(all, doorValue{"basic_auth username", b.Username, setUsername},
			doorValue{"basic_auth password", b.Password, setPassword})
	}
	if d.Postgres != "" {
		all = append(all, doorValue{"username", d.Username, setUsername}, doorValue{"password", d.Password, setPassword})
	}
	return all
}

func setUsername(c *door.Credential, value string) { c.Username = value }
func setPassword(c *door.Credential, value string) { c.Password = value }

// parse checks the template of a value. A value that is not there is an error: a call without it would be another one.
func (d doorBlock) parse(v doorValue, env map[string]string, all *template.Budget) (*template.Template, error) {
	return template.Parse(template.Spec{Name: "door " + d.Label + ": " + v.option, Data: v.text, LeftDelim: "{{",
		RightDelim: "}}", ErrorOnMissingKey: true, Values: env, Budget: all})
}

func (d doorBlock) prepare(r *Renderer) (render renderFunc, asks bool, err error) {
	values := d.values()
	var parsed []*template.Template
	for _, v := range values {
		p, err := d.parse(v, r.cfg.Env, r.budget)
		if err != nil {
			return nil, false, err
		}
		parsed, asks = append(parsed, p), asks || p.AlwaysAsks()
	}
	if d.ClientCert != nil {
		d.pki = r.conf.PKIs[d.ClientCert.PKI]
	}
	return func(ctx context.Context, from *credentials.Source, in template.Input) ([][]byte, error) {
		c := door.Credential{Header: map[string]string{}, Query: map[string]string{}}
		in.Source = from
		for i, v := range values {
			value, err := parsed[i].Execute(ctx, in)
			if err == nil {
				err = d.put(&c, v, string(value))
			}
			if err != nil {
				return nil, err
			}
		}
		if err := d.complete(ctx, &c, from); err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		c.Leases = from.Leases()
		output, err := json.Marshal(c)
		return [][]byte{output}, err
	}, asks || d.Spec.Vault != nil || d.pki != nil, nil
}

// put puts a value where it belongs. A line end at its end is the template's. Others would end a header, and put what
// follows into the request.
func (d doorBlock) put(c *door.Credential, v doorValue, value string) error {
	value = strings.TrimSuffix(value, "\n")
	switch {
	case value == "":
		return fmt.Errorf("%s: %s is empty: the door would call without a credential", d, v.option)
	case strings.ContainsAny(value, "\r\n\x00"):
		return fmt.Errorf("%s: %s has several lines, or a NUL byte, and a credential has one line", d, v.option)
	}
	v.put(c, value)
	return nil
}

// complete adds what is not the value of a template.
func (d doorBlock) complete(ctx context.Context, c *door.Credential, from *credentials.Source) (err error) {
	if d.BasicAuth != nil {
		c.Header["Authorization"] = "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
		c.Username, c.Password = "", ""
	}
	if d.Spec.Vault != nil {
		c.Token, err = from.Token(ctx)
		return err
	}
	if d.pki == nil {
		return nil
	}
	secret, err := from.Of(d.pki.Common().Vault).Ask(ctx, pkiBlock{d.pki}.request())
	if err != nil {
		return fmt.Errorf("client_cert: %w", err)
	}
	issued, err := template.Issued(d.pki.Path, secret.Data)
	if err == nil && issued.Key == "" {
		err = fmt.Errorf("no private key in Vault's answer: use a path such as pki/issue/<role> in %s", d.pki)
	}
	if err != nil {
		return fmt.Errorf("client_cert: %w", err)
	}
	c.CertPEM, c.KeyPEM = []byte(pem(issued, "chain_file")), []byte(issued.Key)
	return nil
}

func (d doorBlock) questions(env map[string]string) (all []Question, asksNomad bool, err error) {
	for _, v := range d.values() {
		parsed, err := d.parse(v, env, nil)
		if err != nil {
			return nil, false, err
		}
		all, asksNomad = append(all, asked(parsed, d.String()+" "+v.option)...), asksNomad || parsed.AsksNomad()
	}
	for i := range all {
		all[i].Door = d.Label
	}
	return all, asksNomad, nil
}

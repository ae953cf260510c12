package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// SecretConfig is one secret block: a secret as a file or as environment, without a template. Its options are named as in
// Vault, Nomad, the CSI provider and the Secrets Operator, whoever has them first.
type SecretConfig struct {
	Path        string            `codec:"path"`
	Method      string            `codec:"method"`
	Args        map[string]string `codec:"args"`
	Version     int               `codec:"version"`
	Key         string            `codec:"key"`
	Encoding    string            `codec:"encoding"`
	Format      string            `codec:"format"`
	Include     []string          `codec:"include"`
	Exclude     []string          `codec:"exclude"`
	Rename      map[string]string `codec:"rename"`
	Destination string            `codec:"destination"`
	Optional    bool              `codec:"optional"`
	OutputConfig

	label string // of the block
}

func secretSpec() map[string]*hclspec.Spec {
	return withOutput(`"0600"`, map[string]*hclspec.Spec{
		"path":        attr("path", "string", `""`),
		"method":      attr("method", "string", `"read"`),
		"args":        hclspec.NewBlockAttrs("args", "string", false),
		"version":     attr("version", "number", "0"),
		"key":         attr("key", "string", `""`),
		"encoding":    attr("encoding", "string", `"utf-8"`),
		"format":      attr("format", "string", `""`),
		"include":     hclspec.NewAttr("include", "list(string)", false),
		"exclude":     hclspec.NewAttr("exclude", "list(string)", false),
		"rename":      hclspec.NewBlockAttrs("rename", "string", false),
		"destination": attr("destination", "string", `""`),
		"optional":    attr("optional", "bool", "false"),
	})
}

// product has a part for the file, unless only the environment is asked for, and one for the environment.
func (s *SecretConfig) product(name string) *product {
	s.label = name
	b := &product{OutputConfig: &s.OutputConfig, config: s, name: s.String(), what: s.String(), secret: true}
	destination := s.Destination
	if destination == "" && !s.Env {
		destination = "secrets/" + name
	}
	if destination != "" {
		b.parts = append(b.parts, part{key: destination, option: "destination", destination: destination})
	}
	if s.Env {
		b.parts = append(b.parts, part{key: envSum(name), env: variables})
	}
	return b
}

// String is how messages name it.
func (s *SecretConfig) String() string { return fmt.Sprintf("secret %q", s.label) }

// envSum is the key of a secret's environment among the sums, which no destination can have.
func envSum(name string) string { return "env\x00" + name }

// variables are what a secret's part for the environment holds.
func variables(data []byte) (env map[string]string, err error) {
	if json.Unmarshal(data, &env) != nil {
		return nil, errors.New("it is not what was made") // the error may quote it
	}
	return env, nil
}

func (s *SecretConfig) check() error {
	switch {
	case !blockName.MatchString(s.label):
		return errBlockName
	case strings.Trim(s.Path, "/ ") == "":
		return errors.New(`path is required: name a secret such as "kv/data/app"`)
	case strings.Contains(s.Path, "?"):
		return errors.New("path: parameters belong into args, and the version of a KV secret into version")
	case s.Method != "read" && s.Method != "write":
		return fmt.Errorf(`method %q is unknown: use "read" or "write", as the commands vault read and vault write`, s.Method)
	case s.Version < 0 || s.Version > 0 && s.Method == "write":
		return errors.New("version is that of a KV secret to read: a number from 1, or 0 for the newest")
	case s.Version > 0 && s.Args["version"] != "":
		return errors.New("both version and args.version are set: keep one")
	case s.Optional && s.Method == "write":
		return errors.New(`optional is for what may not be there yet when it is read: method is "write"`)
	case s.PollInterval != "" && s.Method == "write":
		return errors.New("poll_interval is for what is read again, and nothing is written a second time before its lease or its life ends: leave it out")
	case s.Env && s.Destination == "" && s.Format != "":
		return errors.New("format is that of a file: set destination too, or leave it out for the environment alone")
	}
	return s.fields().Check()
}

func (s *SecretConfig) fields() template.Fields {
	return template.Fields{Key: s.Key, Encoding: s.Encoding, Format: s.Format, Include: s.Include, Exclude: s.Exclude, Rename: s.Rename}
}

// request is what a template would ask with {{ secret }}: for one pass they are the same question.
func (s *SecretConfig) request() vault.Request {
	r := vault.Request{Op: vault.Op(s.Method), Path: s.Path, Optional: s.Optional}
	if r.Op == vault.Write {
		r.Data = map[string]any{}
		for name, value := range s.Args {
			r.Data[name] = value
		}
		return r
	}
	r.Query = url.Values{}
	for name, value := range s.Args {
		r.Query.Set(name, value)
	}
	if s.Version > 0 {
		r.Query.Set("version", strconv.Itoa(s.Version))
	}
	return r
}

func (s *SecretConfig) prepare(*renderer) (maker, error) {
	return func(ctx context.Context, from *source, _ template.Input) ([][]byte, error) {
		secret, err := from.ask(ctx, s.request())
		if err == nil && secret.Absent() {
			return nil, nil
		}
		var outputs [][]byte
		if err == nil {
			outputs, err = s.outputs(secret)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		return outputs, nil
	}, nil
}

// outputs are the bytes of the parts, in their order.
func (s *SecretConfig) outputs(secret *vault.Secret) (outputs [][]byte, err error) {
	values := secret.Data
	if secret.KVv2() {
		values, _ = secret.Data["data"].(map[string]any)
	}
	if s.Destination != "" || !s.Env {
		file, err := s.fields().File(values)
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, file)
	}
	if s.Env {
		env, err := s.fields().Env(values)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(env)
		if err != nil {
			return nil, errors.New("its values are no environment") // the error may quote them
		}
		outputs = append(outputs, data)
	}
	return outputs, nil
}

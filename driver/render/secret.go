package render

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/credentials"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
)

type secretBlock struct{ *config.Secret }

// secretOutputs are the file, unless only the environment is asked for, and the environment.
func secretOutputs(s *config.Secret) (all []output) {
	destination := s.Destination
	if destination == "" && !s.Env {
		destination = "secrets/" + s.Label
	}
	if destination != "" {
		all = append(all, output{key: destination, option: "destination", destination: destination})
	}
	if s.Env {
		all = append(all, output{key: envSum(s.Label), env: variables})
	}
	return all
}

// envSum is the key of a secret's environment among the sums, which no destination can have.
func envSum(name string) string { return "env\x00" + name }

// variables decodes a secret's output for the environment.
func variables(data []byte) (env map[string]string, err error) {
	if json.Unmarshal(data, &env) != nil {
		return nil, errors.New("it is not what was made") // the error may quote it
	}
	return env, nil
}

// request is what a template would ask with {{ secret }}: within one snapshot they are the same question.
func (s secretBlock) request() vault.Request {
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

func (s secretBlock) prepare(*Renderer) (render renderFunc, asks bool, err error) {
	return func(ctx context.Context, from *credentials.Source, _ template.Input) ([][]byte, error) {
		secret, err := from.Ask(ctx, s.request())
		if err == nil && secret.Absent() {
			return nil, nil
		}
		var outputs [][]byte
		if err == nil {
			outputs, err = s.bytes(secret)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		return outputs, nil
	}, true, nil
}

// bytes are those of the outputs, in their order.
func (s secretBlock) bytes(secret *vault.Secret) (outputs [][]byte, err error) {
	values := secret.Data
	if secret.KVv2() {
		values, _ = secret.Data["data"].(map[string]any)
	}
	if secret.Auth != nil { // as `vault write -field=token auth/token/create`
		values = map[string]any{"token": secret.Auth.Value, "token_accessor": secret.Auth.Accessor}
	}
	if s.Destination != "" || !s.Env {
		file, err := s.Fields().File(values)
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, file)
	}
	if s.Env {
		env, err := s.Fields().Env(values)
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

package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/vault"
)

// Vault is the operator's Vault, asked with the operator's token in one namespace.
type Vault struct{ *api.Client }

// ConnectVault returns the Vault that the vault command would talk to, with the same token: the VAULT_ variables
// (https://developer.hashicorp.com/vault/docs/commands#environment-variables), or else the token that vault login
// stored.
func ConnectVault() (Vault, error) {
	conf := api.DefaultConfig()
	if conf.Error != nil {
		return Vault{}, fmt.Errorf("read the VAULT_ variables: %w", conf.Error)
	}
	client, err := api.NewClient(conf)
	if err != nil {
		return Vault{}, fmt.Errorf("read the VAULT_ variables: %w", err)
	}
	if home, err := os.UserHomeDir(); client.Token() == "" && err == nil {
		token, _ := os.ReadFile(filepath.Join(home, ".vault-token"))
		client.SetToken(strings.TrimSpace(string(token)))
	}
	return Vault{client}, nil
}

// In returns the same Vault in another namespace.
func (v Vault) In(namespace string) Vault { return Vault{v.WithNamespace(namespace)} }

// Explain returns an error that says what was tried and what Vault answered. It names what the operator can change in
// the environment: the address if there was no answer, the token if Vault denied.
func (v Vault) Explain(op string, err error) error {
	var answer *api.ResponseError
	switch {
	case !errors.As(err, &answer):
		return fmt.Errorf("%s: %s; VAULT_ADDR is %s", op, vault.Said(err), v.Address())
	case answer.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%s: %s; set VAULT_TOKEN to a token that may", op, vault.Said(err))
	}
	return fmt.Errorf("%s: %s", op, vault.Said(err))
}

// Read returns the object at a path without its empty fields, or nil if there is none. Numbers are float64.
func (v Vault) Read(ctx context.Context, path string) (map[string]any, error) {
	answer, err := v.Logical().ReadWithContext(ctx, path)
	var refused *api.ResponseError
	if err == nil && answer == nil || errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, v.Explain("read "+path, err)
	}
	text, err := json.Marshal(answer.Data) // turns json.Number into float64
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", path, err)
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	maps.DeleteFunc(object, func(_ string, v any) bool {
		return v == nil || v == "" || reflect.DeepEqual(v, []any{}) || reflect.DeepEqual(v, map[string]any{})
	})
	return object, nil
}

// Policy returns the text of a policy, which is empty if there is none.
func (v Vault) Policy(ctx context.Context, name string) (string, error) {
	text, err := v.Sys().GetPolicyWithContext(ctx, name)
	if err != nil {
		return "", v.Explain("read policy "+name, err)
	}
	return text, nil
}

// List returns the names below a path.
func (v Vault) List(ctx context.Context, path string) (names []string, err error) {
	answer, err := v.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, v.Explain("list "+path, err)
	}
	if answer == nil {
		return nil, nil
	}
	keys, _ := answer.Data["keys"].([]any)
	for _, key := range keys {
		names = append(names, fmt.Sprint(key))
	}
	return names, nil
}

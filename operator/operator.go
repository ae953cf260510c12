// Package operator is what a person runs by hand: setup prepares a Vault for the workload identities of a Nomad, check says
// whether a job would get its secrets there. Neither is part of the plugin that serves an agent.
package operator

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/vault"
)

// A Terminal is where a subcommand reads answers and writes.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exit codes of the subcommands.
const (
	done     = 0
	problems = 1
	misused  = 2
)

// Run runs the subcommand that args begin with and returns its exit code; known is false where they begin with none.
// named tells which driver the arguments of a plugin block wrap, and as what.
func Run(args []string, named func(args []string) (wraps, name string, err error), t Terminal) (code int, known bool) {
	if len(args) == 0 || args[0] != "setup" && args[0] != "check" {
		return 0, false
	}
	var err error
	if args[0] == "setup" {
		err = runSetup(context.Background(), args[1:], t)
	} else {
		err = runCheck(context.Background(), args[1:], named, t)
	}
	var wrong usage
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return done, true
	case errors.As(err, &wrong):
		fmt.Fprintf(t.Err, "nomad-driver-vault %s: %v; -h shows the flags\n", args[0], err)
		return misused, true
	case !errors.Is(err, errFound):
		fmt.Fprintf(t.Err, "nomad-driver-vault %s: %v\n", args[0], err)
	}
	return problems, true
}

// usage is an error of who typed the command.
type usage struct{ error }

func misuse(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// parse reads flags that begin with their description. What they do not know, and what is left, is a misuse.
func parse(flags *flag.FlagSet, about string, args []string, t Terminal) error {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(t.Out, "Usage: nomad-driver-vault %s [flags]\n\n%s\n\n", flags.Name(), about)
		flags.SetOutput(t.Out)
		flags.PrintDefaults()
		return err
	case err != nil:
		return usage{err}
	case flags.NArg() > 0:
		return misuse("argument %q is not understood", flags.Arg(0))
	}
	return nil
}

// connect returns a client of the Vault that the vault command would talk to, with the same token: the VAULT_ variables
// (https://developer.hashicorp.com/vault/docs/commands#environment-variables), or else what vault login has left.
func connect() (*api.Client, error) {
	conf := api.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("read the VAULT_ variables: %w", conf.Error)
	}
	client, err := api.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("read the VAULT_ variables: %w", err)
	}
	if home, err := os.UserHomeDir(); client.Token() == "" && err == nil {
		token, _ := os.ReadFile(filepath.Join(home, ".vault-token"))
		client.SetToken(strings.TrimSpace(string(token)))
	}
	return client, nil
}

// failed tells an error of the operator's Vault. Which Vault that is, and as whom, is in the environment.
func failed(op string, client *api.Client, err error) error {
	var answer *api.ResponseError
	switch {
	case !errors.As(err, &answer):
		return fmt.Errorf("%s: %s; VAULT_ADDR is %s", op, vault.Said(err), client.Address())
	case answer.StatusCode == 403:
		return fmt.Errorf("%s: %s; set VAULT_TOKEN to a token that may", op, vault.Said(err))
	}
	return fmt.Errorf("%s: %s", op, vault.Said(err))
}

// settings are what Vault is told of an object, and what it says of it.
type settings map[string]any

// read returns what Vault says of an object, but for what is empty; nil where there is none.
func read(ctx context.Context, client *api.Client, path string) (settings, error) {
	answer, err := client.Logical().ReadWithContext(ctx, path)
	var refused *api.ResponseError
	if err == nil && answer == nil || errors.As(err, &refused) && refused.StatusCode == 404 {
		return nil, nil
	}
	if err != nil {
		return nil, failed("read "+path, client, err)
	}
	var have settings
	text, err := json.Marshal(answer.Data) // its numbers become those of encoding/json
	if err == nil {
		err = json.Unmarshal(text, &have)
	}
	maps.DeleteFunc(have, func(_ string, v any) bool {
		return v == nil || v == "" || reflect.DeepEqual(v, []any{}) || reflect.DeepEqual(v, map[string]any{})
	})
	return have, err
}

// policy returns a policy's text, empty where there is none.
func policy(ctx context.Context, client *api.Client, name string) (string, error) {
	text, err := client.Sys().GetPolicyWithContext(ctx, name)
	if err != nil {
		return "", failed("read policy "+name, client, err)
	}
	return text, nil
}

// list returns the names below a path.
func list(ctx context.Context, client *api.Client, path string) (names []string, err error) {
	answer, err := client.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, failed("list "+path, client, err)
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

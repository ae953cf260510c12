package vault_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// ending is what an example does at its end, as the Cleanup of a test does.
type ending []func()

func (e *ending) Cleanup(f func()) { *e = append(*e, f) }

func (e *ending) run() {
	for _, f := range *e {
		f()
	}
}

// A client logs in, and asks with the token that it got. A KV version 2 path may be the short one.
func Example() {
	var end ending
	defer end.run()
	server := vaulttest.New(&end)
	server.Put("secret/app", map[string]any{"color": "green"})
	client, err := vault.NewClient(server.Cluster(), hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	ctx := context.Background()
	auth, err := client.Login(ctx, "app", "", server.JWT)
	if err != nil {
		fmt.Println(err)
		return
	}
	secret, err := client.As(auth, "app", "").Ask(ctx, vault.Request{Op: vault.Read, Path: "secret/app"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(auth.Policies, secret.Path, secret.Kind, secret.Data["data"])
	// Output:
	// [default] secret/data/app polled map[color:green]
}

// An error has a class, and says on one line what to do.
func ExampleError() {
	var end ending
	defer end.run()
	server := vaulttest.New(&end)
	server.SetRole("app", vaulttest.Role{TTL: time.Hour, Deny: []string{"secret/data/other"}})
	client, err := vault.NewClient(server.Cluster(), hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	ctx := context.Background()
	auth, err := client.Login(ctx, "app", "", server.JWT)
	if err != nil {
		fmt.Println(err)
		return
	}
	caller := client.As(auth, "app", "")
	_, missing := caller.Ask(ctx, vault.Request{Op: vault.Read, Path: "secret/data/none"})
	fmt.Println(missing)
	_, denied := caller.Ask(ctx, vault.Request{Op: vault.Read, Path: "secret/data/other"})
	fmt.Println(strings.ReplaceAll(denied.Error(), "; ", "\n  "))
	fmt.Println(errors.Is(denied, vault.ErrDenied), vault.Transient(denied))
	// Output:
	// read secret/data/none: not found in Vault; write it first, or correct the path
	// read secret/data/other: denied by Vault: permission denied (403)
	//   role "app" grants the policies [default]
	//   what is missing in one of them is: path "secret/data/other" { capabilities = ["read"] }
	// true false
}

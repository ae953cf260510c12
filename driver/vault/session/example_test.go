package session_test

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/session"
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

// A session answers from what it has read, keeps that current, and says when a committed reading shows the old.
func Example() {
	var end ending
	defer end.run()
	server := vaulttest.New(&end)
	server.Put("secret/app", map[string]any{"color": "green"})
	cluster, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	ctx := context.Background()
	s, err := cluster.Open(ctx, session.Options{Login: session.Login{Role: "app", JWT: server.Identity}})
	if err != nil {
		fmt.Println(err)
		return
	}
	show := func() {
		reading := s.Begin(false)
		secret, err := reading.Read(ctx, vault.Request{Op: vault.Read, Path: "secret/app", Every: 10 * time.Millisecond})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(secret.Data["data"])
		reading.Commit(0)
	}
	show()
	server.Put("secret/app", map[string]any{"color": "blue"})
	<-s.Changed()
	show()
	fmt.Println(s.Close(ctx), len(server.Tokens()))
	// Output:
	// map[color:green]
	// map[color:blue]
	// <nil> 0
}

// What was saved of a session goes on in another process, with the same token.
func ExampleCluster_Adopt() {
	var end ending
	defer end.run()
	server := vaulttest.New(&end)
	options := session.Options{Login: session.Login{Role: "app", JWT: server.Identity}}
	ctx := context.Background()
	before, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := before.Open(ctx, options)
	if err != nil {
		fmt.Println(err)
		return
	}
	state, err := s.Save()
	before.Close() // which leaves the token as it is
	if err != nil {
		fmt.Println(err)
		return
	}

	after, err := session.NewCluster(server.Cluster(), hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer after.Close()
	adopted, err := after.Adopt(state, options)
	if err != nil {
		fmt.Println(err)
		return
	}
	old, _, _ := s.Token()
	now, _, _ := adopted.Token()
	fmt.Println(now == old, server.Logins())
	fmt.Println(adopted.Close(ctx), len(server.Tokens()))
	// Output:
	// true 1
	// <nil> 0
}

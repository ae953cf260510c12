package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// call calls a door, of which a variable says where it is, so many times a second until a signal, and says when an
// answer is not the one before. It connects anew for each tenth call.
func call(signals <-chan os.Signal, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("call: which variable, which path, how often a second?")
	}
	each, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	at := os.Getenv(args[0])
	door := caller(at)
	var last string
	calls := 0
	for tick := time.Tick(time.Second / time.Duration(each)); ; calls++ {
		if calls%10 == 9 {
			door.CloseIdleConnections()
		}
		answer := get(door, at, args[1])
		if answer != last {
			fmt.Println("answer:", answer)
		}
		last = answer
		select {
		case s := <-signals:
			fmt.Println("signal", s, "after", calls, "calls")
			return nil
		case <-tick:
		}
	}
}

// caller calls what listens at an address, or at a socket.
func caller(at string) *http.Client {
	t := &http.Transport{}
	if !strings.HasPrefix(at, "http") {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", at)
		}
	}
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

func get(c *http.Client, at, path string) string {
	if !strings.HasPrefix(at, "http") {
		at = "http://door"
	}
	res, err := c.Get(at + path)
	if err != nil {
		return "error " + err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "error " + err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%d %q %s", res.StatusCode, body, res.Header.Get("X-Door-Error")))
}

// read reads a secret as any client of Vault does, which finds it by the environment.
func read(paths []string) error {
	c, err := vault.NewClient(nil)
	if err != nil {
		return err
	}
	for _, path := range paths {
		secret, err := c.Logical().Read(path)
		if err != nil {
			fmt.Printf("%s: %q\n", path, err)
			continue
		}
		fmt.Printf("%s: %v\n", path, secret.Data)
	}
	return nil
}

package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// taskDir is a task's directory with these files in it.
func taskDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"secrets", "private", "local"} {
		must.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestWhereATokenIsFound(t *testing.T) {
	file, env := mint(`{"sub":"file"}`, 1), mint(`{"sub":"env"}`, 2)
	cases := map[string]struct {
		files  map[string]string
		source Source
		want   string
	}{
		"a named identity's file":     {map[string]string{"secrets/nomad_vault.jwt": file}, Source{Name: "vault"}, file},
		"the default identity's file": {map[string]string{"secrets/nomad_token": file}, Source{Name: "default"}, file},
		"no name is the default":      {map[string]string{"secrets/nomad_token": file}, Source{}, file},
		"a file of the job's choosing": {map[string]string{"private/v.jwt": file},
			Source{Name: "vault", File: "private/v.jwt"}, file},
		"the environment, without a file": {nil, Source{Name: "vault", Env: env}, env},
		"the file before the environment": {map[string]string{"secrets/nomad_vault.jwt": file},
			Source{Name: "vault", Env: env}, file},
		"a line break after it": {map[string]string{"secrets/nomad_vault.jwt": file + "\n"}, Source{Name: "vault"},
			file},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.source.Dir = taskDir(t, c.files)
			token, err := c.source.Token(t.Context())
			must.NoError(t, err)
			must.Eq(t, c.want, token.JWT())
		})
	}
}

// What waiting cannot cure comes back at once, or after the grace for a file that Nomad should have written by now.
func TestWhatWaitingCannotCure(t *testing.T) {
	good := mint(`{"sub":"s"}`, 1)
	cases := map[string]struct {
		prepare func(t *testing.T, dir string)
		source  Source
		class   error
		after   time.Duration
		says    []string
	}{
		"no identity block": {
			source: Source{Name: "vault"}, class: ErrAbsent, after: absentGrace,
			says: []string{`identity "vault": no file secrets/nomad_vault.jwt: add to the task: ` +
				`identity { name = "vault" aud = ["vault.io"] file = true }`},
		},
		"no default identity": {
			class: ErrAbsent, after: absentGrace,
			says: []string{`identity "default": no file secrets/nomad_token: add to the task: identity { file = true }`},
		},
		"an identity of another name": {
			prepare: func(t *testing.T, dir string) {
				for _, name := range []string{"nomad_consul.jwt", "nomad_token", "nomad_x.txt", "app.env"} {
					write(t, filepath.Join(dir, "secrets", name), good)
				}
			},
			source: Source{Name: "vault"}, class: ErrAbsent, after: absentGrace,
			says: []string{`found beside it, from identities of other names: "nomad_consul.jwt", "nomad_token"`},
		},
		"another path than the job's": {
			source: Source{Name: "vault", File: "private/vault.jwt"}, class: ErrAbsent, after: absentGrace,
			says: []string{"no file private/vault.jwt", `file = true filepath = "private/vault.jwt" }`},
		},
		"a path that leaves the task": {
			source: Source{Name: "vault", File: "../other/secrets/nomad_vault.jwt"}, class: ErrMalformed,
			says: []string{"../other/secrets/nomad_vault.jwt cannot be read: path escapes from parent"},
		},
		"a task directory that is not there": {
			prepare: func(t *testing.T, dir string) { must.NoError(t, os.RemoveAll(dir)) },
			source:  Source{Name: "vault"}, class: ErrAbsent, after: absentGrace,
			says: []string{"no file secrets/nomad_vault.jwt"},
		},
		"a link in its place": {
			prepare: func(t *testing.T, dir string) {
				write(t, filepath.Join(dir, "local/planted"), good)
				must.NoError(t, os.Symlink("../local/planted", filepath.Join(dir, "secrets/nomad_vault.jwt")))
			},
			source: Source{Name: "vault"}, class: ErrMalformed,
			says: []string{"secrets/nomad_vault.jwt is a symbolic link, not a file that Nomad wrote"},
		},
		"a directory above it that is a link out": {
			prepare: func(t *testing.T, dir string) {
				other := taskDir(t, map[string]string{"secrets/nomad_vault.jwt": good})
				must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
				must.NoError(t, os.Symlink(filepath.Join(other, "secrets"), filepath.Join(dir, "secrets")))
			},
			source: Source{Name: "vault"}, class: ErrMalformed, says: []string{"path escapes from parent"},
		},
		"a named pipe in its place": {
			prepare: func(t *testing.T, dir string) {
				must.NoError(t, syscall.Mkfifo(filepath.Join(dir, "secrets/nomad_vault.jwt"), 0o600))
			},
			source: Source{Name: "vault"}, class: ErrMalformed, says: []string{"is a named pipe"},
		},
		"a directory in its place": {
			prepare: func(t *testing.T, dir string) {
				must.NoError(t, os.Mkdir(filepath.Join(dir, "secrets/nomad_vault.jwt"), 0o755))
			},
			source: Source{Name: "vault"}, class: ErrMalformed, says: []string{"is a directory"},
		},
		"a socket in its place": {
			prepare: func(t *testing.T, dir string) {
				listener, err := net.Listen("unix", filepath.Join(dir, "s"))
				must.NoError(t, err)
				t.Cleanup(func() { listener.Close() })
			},
			source: Source{Name: "vault", File: "s"}, class: ErrMalformed, says: []string{"is a socket"},
		},
		"a file without end": {
			prepare: func(t *testing.T, dir string) {
				path := filepath.Join(dir, "secrets/nomad_vault.jwt")
				write(t, path, good)
				must.NoError(t, os.Truncate(path, 1<<40))
			},
			source: Source{Name: "vault"}, class: ErrMalformed, says: []string{"is larger than 65536 bytes"},
		},
		"an environment that holds no JWT": {
			source: Source{Name: "vault", Env: "hvs.CAESIJ"}, class: ErrMalformed, says: []string{"NOMAD_TOKEN_vault is not " +
				"a JWT"},
		},
		"an environment that has expired": {
			source: Source{Name: "vault", Env: mint(`{"exp":900000000}`, 1)}, class: ErrExpired,
			says: []string{"NOMAD_TOKEN_vault expired", "at 1998-07-09T16:00:00Z", "add to its identity block: file = true"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.source.Dir = taskDir(t, nil)
			if c.prepare != nil {
				c.prepare(t, c.source.Dir)
			}
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				_, err := c.source.Token(ctx)
				must.ErrorIs(t, err, c.class)
				for _, text := range c.says {
					must.StrContains(t, err.Error(), text)
				}
				must.Between(t, c.after, time.Since(began), c.after+longPause)
				must.StrNotContains(t, err.Error(), "hvs.CAESIJ")
			})
		})
	}
}

func TestATokenThatComesLate(t *testing.T) {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where a synctest bubble's clock begins
	good := mint(expiring(epoch.Add(time.Hour)), 1)
	cases := map[string]struct {
		before string // what the file holds until then; "absent" for no file
		after  time.Duration
	}{
		"the file is empty":         {"", 20 * time.Second},
		"the file is half-written":  {good[:len(good)/2], 20 * time.Second},
		"the token there is over":   {mint(expiring(epoch.Add(-time.Hour)), 2), 20 * time.Second},
		"the file is not there yet": {"absent", 2 * time.Second},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			source := Source{Name: "vault", Dir: taskDir(t, nil)}
			path := filepath.Join(source.Dir, "secrets/nomad_vault.jwt")
			if c.before != "absent" {
				write(t, path, c.before)
			}
			synctest.Test(t, func(t *testing.T) {
				time.AfterFunc(c.after, func() { write(t, path, good) })
				began := time.Now()
				token, err := source.Token(t.Context())
				must.NoError(t, err)
				must.Eq(t, good, token.JWT())
				must.Between(t, c.after, time.Since(began), c.after+longPause)
			})
		})
	}
}

func TestATokenThatNeverComes(t *testing.T) {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	cases := map[string]struct {
		content string
		class   error
		says    string
	}{
		"the file stays empty": {"", ErrMalformed, "is empty: Nomad is writing it, or the secrets directory is full"},
		"the file is no JWT":   {"secret-garbage", ErrMalformed, "is not a complete JWT: it is not three parts"},
		"the token is over": {
			mint(expiring(epoch.Add(-2*time.Hour)), 1), ErrExpired,
			"s ago, at 1999-12-31T22:00:00Z: Nomad renews it at half its life, so either no " +
				"Nomad server can be reached or this node's clock is wrong",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			source := Source{Name: "vault", Dir: taskDir(t, map[string]string{"secrets/nomad_vault.jwt": c.content})}
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute+longPause/2)
				defer cancel()
				_, err := source.Token(ctx)
				must.ErrorIs(t, err, c.class)
				must.Error(t, ctx.Err())
				must.StrNotContains(t, err.Error(), "secret-garbage")
				must.StrContains(t, err.Error(), c.says)
			})
		})
	}
}

// The clocks of a node and of the server that signs are not the same: what is young, or over by little, is for Vault to
// judge.
func TestClocksThatDiffer(t *testing.T) {
	life := func(issued, expires time.Duration) string {
		now := time.Now()
		return mint(fmt.Sprintf(`{"iat":%d,"exp":%d}`, now.Add(issued).Unix(), now.Add(expires).Unix()), 1)
	}
	cases := map[string]struct {
		jwt     string
		written time.Duration // ago
		class   error
	}{
		"the node is ten minutes ahead":        {life(-11*time.Minute, -6*time.Minute), time.Minute, nil},
		"the node is an hour ahead":            {life(-61*time.Minute, -56*time.Minute), time.Minute, nil},
		"the node is ten minutes behind":       {life(10*time.Minute, 15*time.Minute), time.Minute, nil},
		"it was over a moment ago":             {life(-6*time.Minute, -time.Minute), 6 * time.Minute, nil},
		"it has been over for long":            {life(-2*time.Hour, -time.Hour), 2 * time.Hour, ErrExpired},
		"it does not say when it was issued":   {mint(expiring(time.Now().Add(-time.Hour)), 1), time.Minute, ErrExpired},
		"it is over, and was written long ago": {life(-30*time.Minute, -20*time.Minute), 11 * time.Minute, ErrExpired},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			source := Source{Name: "vault", Dir: taskDir(t, map[string]string{"secrets/nomad_vault.jwt": c.jwt})}
			written := time.Now().Add(-c.written)
			must.NoError(t, os.Chtimes(filepath.Join(source.Dir, "secrets/nomad_vault.jwt"), written, written))
			_, err := source.Peek()
			must.ErrorIs(t, err, c.class)
		})
	}
}

func TestPeekNoticesARenewedToken(t *testing.T) {
	old, renewed := mint(`{"sub":"s"}`, 1), mint(`{"sub":"s"}`, 2)
	source := Source{Name: "vault", Dir: taskDir(t, map[string]string{"secrets/nomad_vault.jwt": old})}
	first, err := source.Peek()
	must.NoError(t, err)
	write(t, filepath.Join(source.Dir, "secrets/nomad_vault.jwt"), renewed)
	second, err := source.Peek()
	must.NoError(t, err)
	must.NotEq(t, first.JWT(), second.JWT())
	must.Eq(t, renewed, second.JWT())
}

// The task swaps the file for other things as fast as it can: a Peek never hangs and never returns what it did not
// write there.
func TestATaskThatFightsTheReader(t *testing.T) {
	good, outside := mint(`{"sub":"inside"}`, 1), mint(`{"sub":"outside"}`, 2)
	other := taskDir(t, map[string]string{"secrets/nomad_vault.jwt": outside})
	source := Source{Name: "vault", Dir: taskDir(t, map[string]string{"secrets/nomad_vault.jwt": good,
		"local/planted": outside})}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		swap(t, source.Dir, filepath.Join(other, "secrets/nomad_vault.jwt"), good, stop)
	}()
	seen := 0
	for range 3000 {
		token, err := source.Peek()
		if err == nil {
			must.Eq(t, good, token.JWT())
			seen++
		} else {
			must.True(t, errors.Is(err, ErrMalformed) || errors.Is(err, ErrAbsent))
		}
	}
	close(stop)
	<-stopped
	must.Positive(t, seen)
}

func swap(t *testing.T, dir, outside, good string, stop chan struct{}) {
	next, place := filepath.Join(dir, "secrets/next"), filepath.Join(dir, "secrets/nomad_vault.jwt")
	makers := []func() error{
		func() error { return os.WriteFile(next, []byte(good), 0o600) },
		func() error { return syscall.Mkfifo(next, 0o600) },
		func() error { return os.Symlink(outside, next) },
		func() error { return os.WriteFile(next, []byte(good), 0o600) },
		func() error { return os.Symlink("../local/planted", next) },
		func() error { return os.WriteFile(next, nil, 0o600) },
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		if err := errors.Join(makers[i%len(makers)](), os.Rename(next, place)); err != nil {
			t.Error(err)
			return
		}
	}
}

// Package identity reads a task's workload identity: the JWT that Nomad signs for it, writes below the task's directory
// and rewrites at half its life. It finds the file, waits where waiting can help, notices a new token, and says in one
// line what to do when there is none. Whether the signature is good is for Vault to judge.
//
// The plugin is root and the task can write where Nomad writes, so a file is read as hostile: never through a link,
// never blocking, never without a limit. Nomad truncates and writes in place (helper/users/lookup.go, WriteFileFor), so
// an empty or half-written file is an ordinary sight.
package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"nomad-driver-vault/internal/inode"
)

// The classes of a task without a usable identity; every error of a Source matches one of them with errors.Is, and its
// text tells the job's author or the operator what to do.
var (
	// ErrAbsent: there is no such file and no such environment variable, and there will be none: the job does not ask for
	// it.
	ErrAbsent = errors.New("no identity token")
	// ErrMalformed: what is there is no JWT.
	ErrMalformed = errors.New("malformed identity token")
	// ErrExpired: the JWT's time is over, and no new one has come.
	ErrExpired = errors.New("expired identity token")
)

const (
	// absentGrace is how long a missing file is looked for. Nomad's prestart has by then waited for the first token for up
	// to a minute (client/allocrunner/taskrunner/identity_hook.go), so this covers little more than the write itself.
	absentGrace = 3 * time.Second
	firstPause  = 50 * time.Millisecond
	longPause   = time.Second
	sizeLimit   = 64 << 10
	namesLimit  = 256 // of a directory the task can fill

	// clockError is how far this node's clock may be from that of the Nomad server that signed: what has expired by less
	// is for Vault to judge.
	clockError = 10 * time.Minute
)

// A Source is where one identity of one task is found.
type Source struct {
	// Name is that of the task's identity block. "default", or nothing, is the one that Nomad itself understands.
	Name string
	// Dir is the task's directory as this host sees it.
	Dir string
	// File is the token's path below Dir; empty for the place where Nomad writes it unless the identity block has a
	// filepath.
	File string
	// Env is the value that NOMAD_TOKEN_<name> (NOMAD_TOKEN for the default) had when the task started. It is used when
	// there is no file, and is never renewed.
	Env string
}

// Token returns the task's token as it is now. While the file is empty, half-written or expired it waits for a better
// one until ctx ends; where waiting cannot help it returns at once. Its error matches ErrAbsent, ErrMalformed or
// ErrExpired.
func (s Source) Token(ctx context.Context) (Token, error) {
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		token, err := s.Peek()
		if err == nil || hopeless(err, time.Since(began)) {
			return token, err
		}
		select {
		case <-ctx.Done():
			return Token{}, err
		case <-time.After(pause):
		}
	}
}

// Peek is Token without waiting: one stat and one short read, for a caller that looks again and again. Nomad may be
// writing the file at this very moment, so an error here says little about the next time.
func (s Source) Peek() (Token, error) {
	content, written, err := s.read()
	if errors.Is(err, ErrAbsent) && s.Env != "" {
		return s.fromEnv()
	}
	if err != nil {
		return Token{}, err
	}
	return s.fromFile(strings.TrimSpace(string(content)), written)
}

// fromFile reads what was written to the file at that time.
func (s Source) fromFile(text string, written time.Time) (Token, error) {
	if text == "" {
		return Token{}, s.problem(ErrMalformed, "%s is empty: Nomad is writing it, or the secrets directory is full",
			s.file())
	}
	token, err := parse(text)
	if err != nil {
		return Token{}, s.problem(ErrMalformed, "%s is not a complete JWT: %v", s.file(), err)
	}
	if late := expired(token, written); late != "" {
		return Token{}, s.problem(ErrExpired, "%s %s: Nomad renews it at half its life, so either no Nomad server can be "+
			"reached or this node's clock is wrong", s.file(), late)
	}
	return token, nil
}

// fromEnv never asks to wait: the value is the one the task was started with.
func (s Source) fromEnv() (Token, error) {
	token, err := parse(s.Env)
	if err != nil {
		return Token{}, s.final(ErrMalformed, "%s is not a JWT: %v", s.variable(), err)
	}
	if late := expired(token, time.Time{}); late != "" {
		return Token{}, s.final(ErrExpired, "%s %s: Nomad does not renew it in a running task's environment; add to its "+
			"identity block: file = true", s.variable(), late)
	}
	return token, nil
}

// expired says since when, or nothing. A token that Nomad wrote less than its life ago is good whatever this node's
// clock says of its end.
func expired(t Token, written time.Time) string {
	late := time.Since(t.Expires)
	young := !t.IssuedAt.IsZero() && !written.IsZero() && time.Since(written) < t.Expires.Sub(t.IssuedAt)
	if t.Expires.IsZero() || late < clockError || young {
		return ""
	}
	return fmt.Sprintf("expired %s ago, at %s", late.Truncate(time.Second), t.Expires.UTC().Format(time.RFC3339))
}

// read returns the whole file, and when it was written. What is there but is no regular file of a sensible size is a
// problem that waiting cannot cure.
func (s Source) read() (content []byte, written time.Time, err error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, written, s.unreadable(err, nil)
	}
	defer root.Close()
	content, info, err := inode.Read(root, s.file(), sizeLimit)
	if err != nil {
		return nil, written, s.unreadable(err, root)
	}
	return content, info.ModTime(), nil
}

// unreadable tells an error of the file system. root may be nil.
func (s Source) unreadable(err error, root *os.Root) error {
	var other *inode.TypeError
	switch {
	case errors.As(err, &other):
		return s.final(ErrMalformed, "%s is %s, not a file that Nomad wrote", s.file(), inode.Kind(other.Found))
	case errors.Is(err, inode.ErrLarge):
		return s.final(ErrMalformed, "%s is larger than %d bytes, which no identity token is", s.file(), sizeLimit)
	case !errors.Is(err, fs.ErrNotExist):
		return s.final(ErrMalformed, "%s cannot be read: %v", s.file(), inode.Cause(err))
	}
	absent := s.problem(ErrAbsent, "no file %s: add to the task: %s (if that is there, Nomad's servers have not signed "+
		"it)",
		s.file(), s.Block())
	if beside := s.beside(root); len(beside) > 0 {
		absent.text += fmt.Sprintf("; found beside it, from identities of other names: %s", strings.Join(beside, ", "))
	}
	return absent
}

// Block is what is missing from the jobspec.
func (s Source) Block() string {
	named, path := "", ""
	if !s.isDefault() {
		named = fmt.Sprintf(`name = %q aud = ["vault.io"] `, s.Name)
	}
	if s.File != "" {
		path = fmt.Sprintf(" filepath = %q", s.File)
	}
	return "identity { " + named + "file = true" + path + " }"
}

// beside lists tokens in the file's directory, since a wrong name is the usual mistake. A task can put any name there:
// they are quoted, and no more than namesLimit are looked at.
func (s Source) beside(root *os.Root) []string {
	if root == nil {
		return nil
	}
	dir, err := root.OpenFile(filepath.Dir(s.file()), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(namesLimit)
	var tokens []string
	for _, name := range names {
		named := strings.HasPrefix(name, "nomad_") && strings.HasSuffix(name, ".jwt")
		if named || name == "nomad_token" {
			tokens = append(tokens, fmt.Sprintf("%q", name))
		}
	}
	slices.Sort(tokens)
	return tokens
}

func (s Source) isDefault() bool { return s.Name == "" || s.Name == "default" }

// file and variable are the names Nomad gives a token (client/allocrunner/taskrunner/identity_hook.go,
// client/taskenv/env.go).
func (s Source) file() string {
	switch {
	case s.File != "":
		return s.File
	case s.isDefault():
		return "secrets/nomad_token"
	default:
		return "secrets/nomad_" + s.Name + ".jwt"
	}
}

func (s Source) variable() string {
	if s.isDefault() {
		return "NOMAD_TOKEN"
	}
	return "NOMAD_TOKEN_" + s.Name
}

// A problem is an error whose text is for people and whose class is for code.
type problem struct {
	class error
	text  string
	final bool // waiting cannot help
}

func (p *problem) Error() string { return p.text }

func (p *problem) Unwrap() error { return p.class }

func (s Source) problem(class error, format string, args ...any) *problem {
	name := s.Name
	if s.isDefault() {
		name = "default"
	}
	return &problem{class: class, text: fmt.Sprintf("identity %q: ", name) + fmt.Sprintf(format, args...)}
}

// final is a problem that no later write by Nomad will mend.
func (s Source) final(class error, format string, args ...any) *problem {
	p := s.problem(class, format, args...)
	p.final = true
	return p
}

// hopeless reports whether to stop waiting after that long.
func hopeless(err error, waited time.Duration) bool {
	var p *problem
	return errors.As(err, &p) && (p.final || p.class == ErrAbsent && waited >= absentGrace)
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"nomad-driver-vault/driver/sched"
)

// freshToken is how long a denial may mean that the node of Vault that was asked has not heard of the token yet
// (https://developer.hashicorp.com/vault/docs/enterprise/consistency).
const freshToken = time.Second

// fresh is for how long that may still be so, zero or less when it is over.
func (t *token) fresh() time.Duration { return freshToken - time.Since(t.Lease.Issued) }

// whileFresh repeats try, after short pauses, while a denial need not be one.
func (t *token) whileFresh(ctx context.Context, try func() error) error {
	for pause := freshToken / 10; ; pause *= 2 {
		err := try()
		fresh := t.fresh()
		if !errors.Is(err, ErrDenied) || fresh <= 0 || !sched.Sleep(ctx, min(pause, fresh)) {
			return err
		}
	}
}

// fetch asks Vault once, and returns the token that it was asked with. A token that Vault no longer knows is replaced and
// the request made again.
func (s *Session) fetch(ctx context.Context, req Request) (*Secret, *token, error) {
	t := s.current()
	secret, err := s.ask(ctx, req, t)
	if !errors.Is(err, ErrDenied) {
		return secret, t, err
	}
	if err = s.verdict(ctx, t, err); !errors.Is(err, errTokenGone) {
		return nil, t, err
	}
	if t, err = s.relogin(ctx, t); err != nil {
		return nil, t, err
	}
	secret, err = s.ask(ctx, req, t)
	return secret, t, err
}

// ask makes the request with t, and again while t is so new that a denial need not be one.
func (s *Session) ask(ctx context.Context, req Request, t *token) (secret *Secret, err error) {
	if err = CheckPath(req.Path); err != nil {
		return nil, err
	}
	err = t.whileFresh(ctx, func() (err error) {
		secret, err = s.askOnce(ctx, req, t)
		return err
	})
	return secret, err
}

// askOnce makes the request with t and reads the answer.
func (s *Session) askOnce(ctx context.Context, req Request, t *token) (*Secret, error) {
	as, err := s.client.as(t.Value, s.namespace)
	if err != nil {
		return nil, err
	}
	m, err := s.mountOf(ctx, as, t, req)
	if err != nil {
		return nil, hush(err)
	}
	path := m.apiPath(req.Op, req.Path)
	op := string(req.Op) + " " + path
	repeatable := keeps(m.engine) || req.Op == List
	if !repeatable {
		making, done := s.client.making(ctx)
		defer done()
		ctx = making
	}
	now := time.Now()
	answer, err := send(ctx, as, m, req, path)
	if err != nil {
		err = s.explain(s.client.fail(op, err), req, path, t)
		if repeatable {
			err = hush(err)
		}
		return nil, err
	}
	if answer == nil && req.Op == Write { // most writes have nothing to say
		answer = &api.Secret{}
	}
	if req.Op != Write && empty(answer) {
		err := missing(op, req, m, answer)
		if req.Optional && err.absent {
			return newSecret(req, path, m.engine, &api.Secret{}, now, 0, s.client.jitter()), nil
		}
		return nil, err
	}
	return newSecret(req, path, m.engine, answer, now, time.Duration(s.client.ahead.Load()), s.client.jitter()), nil
}

// hush is for a request that may be repeated although its answer was lost: nothing was issued.
func hush(err error) error {
	var e *Error
	if errors.As(err, &e) {
		e.lost = false
	}
	return err
}

// send makes the request. A write to a KV v2 path is wrapped as its API wants it.
func send(ctx context.Context, as *api.Client, m mount, req Request, path string) (*api.Secret, error) {
	switch req.Op {
	case Write:
		body := req.Data
		if _, wrapped := body["data"]; m.shows(path) && !wrapped {
			body = map[string]any{"data": req.Data}
		}
		return as.Logical().WriteWithContext(ctx, path, body)
	case List:
		return as.Logical().ListWithContext(ctx, path)
	default:
		return as.Logical().ReadWithDataWithContext(ctx, path, req.Query)
	}
}

// empty reports that an answer has nothing to show: there is none, or it is that of KV v2 for a version without data.
func empty(answer *api.Secret) bool {
	if answer == nil || len(answer.Data) == 0 && answer.LeaseID == "" {
		return true
	}
	data, has := answer.Data["data"]
	_, versioned := answer.Data["metadata"]
	return has && versioned && data == nil
}

// missing says what an empty answer means, as far as Vault lets us know.
func missing(op string, req Request, m mount, answer *api.Secret) *Error {
	e := &Error{Class: ErrNotFound, Op: op, Hint: "write it first, or correct the path", absent: true}
	var meta map[string]any
	var warned string
	if answer != nil {
		meta, _ = answer.Data["metadata"].(map[string]any)
		warned = strings.Join(answer.Warnings, " ")
	}
	another := fmt.Sprintf("write it again, or name another version with %s?version=N", strings.TrimPrefix(op, "read "))
	switch {
	case meta["destroyed"] == true:
		e.Detail, e.Hint = fmt.Sprintf("version %v is destroyed", meta["version"]), another
	case meta["deletion_time"] != nil && meta["deletion_time"] != "":
		e.Detail, e.Hint = fmt.Sprintf("version %v was deleted at %v", meta["version"], meta["deletion_time"]), "undelete it, "+another
	case strings.Contains(warned, "Invalid path for a versioned K/V secrets engine"):
		e.Hint, e.absent = "the mount is KV version 2: put data/ after the mount's name", false
	case warned != "":
		e.Detail = quiet(warned)
	case req.Query.Has("version"):
		e.Detail = "there is no version " + req.Query.Get("version")
	case m.path == "": // Vault tells it to every token that has rights below a mount
		e.Detail, e.Hint = "no secrets engine is mounted there", "enable one, or correct the path or the namespace"
		e.absent = m.untold
	}
	return e
}

// explain adds to a refusal what to change.
func (s *Session) explain(err error, req Request, path string, t *token) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Class {
	case ErrDenied:
		e.Hint = Grant(s.role, t.Policies, path, req.Op)
	case ErrNotFound, ErrInvalid:
		if strings.Contains(e.Detail, "unsupported path") || strings.Contains(e.Detail, "no handler for route") {
			e.Class, e.Hint = ErrNotFound, "no secrets engine answers at that path: correct it, or the namespace"
		}
	}
	return err
}

// says reports whether two answers to the same question say the same. A lease is part of what a leased secret says: its
// credentials end with it. For how long a static role's password is still good is not: it is less each time.
func (s *Secret) says(other *Secret) bool {
	data, others := s.Data, other.Data
	if s.Kind == Rotating {
		data, others = maps.Clone(data), maps.Clone(others)
		delete(data, "ttl")
		delete(others, "ttl")
	}
	return s.Kind == other.Kind && s.Lease.ID == other.Lease.ID && s.Path == other.Path && reflect.DeepEqual(data, others)
}

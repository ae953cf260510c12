package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// Ask makes the request, and again while the token is so new that a denial need not be one. A KV v2 path may be that of
// the vault kv command. A request that issues something outlives ctx for a moment (detachForCreate).
func (c *Caller) Ask(ctx context.Context, req Request) (secret *Secret, err error) {
	if err = CheckPath(req.Path); err != nil {
		return nil, err
	}
	err = c.whileUncertain(ctx, func() (err error) {
		secret, err = c.askOnce(ctx, req)
		return err
	})
	return secret, err
}

// askOnce makes the request and reads the answer.
func (c *Caller) askOnce(ctx context.Context, req Request) (*Secret, error) {
	as, err := c.api()
	if err != nil {
		return nil, err
	}
	m, err := c.mountOf(ctx, as, req)
	if err != nil {
		return nil, MarkNothingIssued(err)
	}
	path := m.apiPath(req.Op, req.Path)
	op := string(req.Op) + " " + path
	repeatable := keeps(m.engine) || req.Op == List
	if !repeatable {
		creating, done := c.client.detachForCreate(ctx)
		defer done()
		ctx = creating
	}
	now := time.Now()
	answer, err := send(ctx, as, m, req, path)
	if err != nil {
		err = c.explain(c.client.fail(op, err), req, path)
		if repeatable {
			err = MarkNothingIssued(err)
		}
		return nil, err
	}
	if answer == nil && req.Op == Write { // most writes have nothing to say
		answer = &api.Secret{}
	}
	if req.Op != Write && empty(answer) {
		err := missing(op, req, m, answer)
		if !req.Optional || !err.absent {
			return nil, err
		}
		answer = &api.Secret{}
	}
	return newSecret(req, path, m.engine, answer, now, time.Duration(c.client.ahead.Load()), c.client.Jitter()), nil
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
		e.Detail = fmt.Sprintf("version %v was deleted at %v", meta["version"], meta["deletion_time"])
		e.Hint = "undelete it, " + another
	case strings.Contains(warned, "Invalid path for a versioned K/V secrets engine"):
		e.Hint, e.absent = "the mount is KV version 2: put data/ after the mount's name", false
	case warned != "":
		e.Detail = quiet(warned)
	case req.Query.Has("version"):
		e.Detail = "there is no version " + req.Query.Get("version")
	case m.path == "": // Vault tells it to every token that has rights below a mount
		e.Detail, e.Hint = "no secrets engine is mounted there", "enable one, or correct the path or the namespace"
		e.absent = m.concealed
	}
	return e
}

// MissingError is the error for a request to whose path, as Vault's API has it, there is nothing.
func MissingError(req Request, path string) error {
	return missing(string(req.Op)+" "+path, req, mount{path: path}, nil)
}

// explain adds to a refusal what to change.
func (c *Caller) explain(err error, req Request, path string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Class {
	case ErrDenied:
		e.Hint = Grant(c.Role, c.Policies, path, req.Op)
	case ErrNotFound, ErrInvalid:
		if strings.Contains(e.Detail, "unsupported path") || strings.Contains(e.Detail, "no handler for route") {
			e.Class, e.Hint = ErrNotFound, "no secrets engine answers at that path: correct it, or the namespace"
		}
	}
	return err
}

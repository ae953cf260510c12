package session

import (
	"context"
	"errors"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// slowAfter is how long a task waits for Vault before a notice says so.
const slowAfter = 2 * time.Second

// retry repeats try until ctx ends, as long as waiting can help. It calls tell once when that takes long, with the
// first error or nil where there is none yet. The error is that of the last attempt which ctx did not cut short. The
// context of each attempt gives its requests more time than that of the one before.
func retry(ctx context.Context, tell func(why error), try func(context.Context) error) error {
	quick := sched.Backoff{First: 200 * time.Millisecond, Most: 5 * time.Second}
	var before error
	reasons := make(chan error, 1)
	defer notifyIfSlow(reasons, tell)()
	for tries := 0; ; tries++ {
		err := try(vault.WithTimeout(ctx, vault.Timeout(tries)))
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && before != nil:
			return before
		case ctx.Err() != nil || !vault.Transient(err):
			return err
		}
		if before == nil {
			reasons <- err
		}
		if before = err; !sched.Sleep(ctx, quick.Next()) {
			return err
		}
	}
}

// notifyIfSlow calls tell after slowAfter, with the error that reasons holds by then or nil, unless it is stopped
// before.
func notifyIfSlow(reasons <-chan error, tell func(why error)) (stop func() bool) {
	return time.AfterFunc(slowAfter, func() {
		select {
		case why := <-reasons:
			tell(why)
		default:
			tell(nil)
		}
	}).Stop
}

// retryCreate is retry for a request that creates something, a lease or a token, which nobody can revoke when the
// answer gets lost. After a lost answer it goes on only when Vault is known to answer, and mintsPerLife times at most.
// more is called with each lost answer and returns whether another attempt is allowed.
func retryCreate(ctx context.Context, tell func(error), answers func(context.Context) error, more func(error) bool,
	try func(context.Context) error) error {
	var last error
	misses := 0
	return retry(ctx, tell, func(ctx context.Context) error {
		if misses > 0 {
			switch err := answers(ctx); {
			case vault.Transient(err):
				return last
			case vault.Unreachable(err): // it knows better why
				return err
			}
		}
		if last = try(ctx); !vault.AnswerLost(last) {
			return last
		}
		if misses++; misses < mintsPerLife && more(last) {
			return last
		}
		return final(last)
	})
}

// final marks an error as one that waiting cannot cure, since the answers get lost.
func final(err error) error {
	var e *vault.Error
	if errors.As(err, &e) {
		e.Final, e.Hint = true, "answers get lost on their way, look at what stands before Vault"
	}
	return err
}

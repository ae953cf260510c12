package session

import (
	"context"
	"errors"
	"time"

	"nomad-driver-vault/driver/sched"
	"nomad-driver-vault/driver/vault"
)

// slowAfter is how long somebody waits for Vault before that is told.
const slowAfter = 2 * time.Second

// retry repeats try while waiting can help and ctx lasts, and tells once that it waits, and why, nil where there is no error yet. An attempt that
// ctx cut short says less than the one before it. try gets a context in which each request may take
// longer than in the one before.
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

// notifyIfSlow tells after a while what there is to tell by then, unless it is stopped before.
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

// retryCreate is patiently for what leaves something behind when its answer gets lost: a lease, or a token that nobody can revoke
// any more. After that it goes on only when Vault is known to answer, and not more often than the budget of a lease; more is
// told of each loss and says whether the budget allows another.
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

// final ends the patience with an error.
func final(err error) error {
	var e *vault.Error
	if errors.As(err, &e) {
		e.Final, e.Hint = true, "answers get lost on their way, look at what stands before Vault"
	}
	return err
}

package e2e

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// Starts that Vault, or what is missing in it, holds up.

// lostCredentialsOfAStartStayWithinTheBudget: a start gives up in time, and takes back what it has not even heard of.
func lostCredentialsOfAStartStayWithinTheBudget(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	j = behind(t, s, j, time.Hour, time.Hour)
	must.NoError(t, proxy.Break(stack.Lost, "GET /v1/database/creds/"))
	alloc := run(t, s, j)
	message, took := failure(t, alloc, j.Name)
	must.StrContains(t, message, "answers get lost on their way, look at what stands before Vault")
	must.Less(t, startTimeout, took)
	must.Eq(t, 4, watched(s, j).granted(t, "database/creds/"+j.Name))
	eventually(t, slack, func() error { return leftBehind(t, s, j.Name, alloc) })
}

// lostLoginsOfAStartStayWithinTheBudget: nobody but Vault knows of a token whose answer got lost.
func lostLoginsOfAStartStayWithinTheBudget(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	j = behind(t, s, j, time.Hour, time.Hour)
	must.NoError(t, proxy.Break(stack.Lost, "PUT /v1/auth/jwt-nomad/login"))
	alloc := run(t, s, j)
	message, _ := failure(t, alloc, j.Name)
	must.StrContains(t, message, "answers get lost on their way, look at what stands before Vault")
	must.LessEq(t, 4, len(tokensOf(t, s, j.Name)))
	must.SliceEmpty(t, processes(alloc))
}

// startWaits: a task that starts during an outage is started when it is over.
func startWaits(fault stack.Fault) func(*testing.T, *stack.Stack, *stack.Proxy, job) {
	return func(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
		ctx := within(t, 2*time.Minute)
		j = behind(t, s, j, time.Hour, time.Hour)
		must.NoError(t, proxy.Break(fault))
		alloc := run(t, s, j)
		happened(t, ctx, alloc, j, nomad.TaskSetup)
		outage := time.NewTimer(startTimeout / 3)
		<-outage.C
		must.Eq(t, "pending", state(t, ctx, alloc, j).State)
		_, err := alloc.Event(ctx, j.Name, "Vault: waiting")
		must.NoError(t, err)
		must.NoError(t, proxy.Mend())
		shown(t, ctx, alloc, j, "/secrets/db.env", 1)
		now := state(t, ctx, alloc, j)
		must.SliceNotContainsFunc(t, now.Events, nomad.TaskDriverFailure, isEvent)
		must.Len(t, 1, tokensOf(t, s, j.Name))
		must.One(t, watched(s, j).granted(t, "database/creds/"+j.Name))
	}
}

func isEvent(e *nomad.TaskEvent, kind string) bool { return e.Type == kind }

// happened waits until the task has an event of that type, and returns when it was.
func happened(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job, kind string) (at time.Time) {
	t.Helper()
	_, err := alloc.Wait(ctx, "event "+kind, func(a *nomad.Allocation) bool {
		s := a.TaskStates[j.Name]
		if s == nil {
			return false
		}
		i := slices.IndexFunc(s.Events, func(e *nomad.TaskEvent) bool { return e.Type == kind })
		if i >= 0 {
			at = time.Unix(0, s.Events[i].Time)
		}
		return i >= 0
	})
	must.NoError(t, err)
	return at
}

// startThatWaitedInVainIsMadeAgain: by Nomad, as the job's restart block says.
func startThatWaitedInVainIsMadeAgain(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	ctx := within(t, 2*time.Minute)
	j = behind(t, s, j, time.Hour, time.Hour)
	j.Task += "restart {\n attempts = 3\n delay = \"1s\"\n interval = \"10m\"\n mode = \"fail\"\n }"
	must.NoError(t, proxy.Break(stack.Sealed))
	alloc := run(t, s, j)
	failed := happened(t, ctx, alloc, j, nomad.TaskDriverFailure)
	must.Between(t, startTimeout-time.Second, failed.Sub(happened(t, ctx, alloc, j, nomad.TaskSetup)),
		startTimeout+stretched(slack))
	_, err := alloc.Event(ctx, j.Name, "Vault is sealed")
	must.NoError(t, err)
	must.NoError(t, proxy.Mend())
	shown(t, ctx, alloc, j, "/secrets/db.env", 1)
	must.Eq(t, 1, state(t, ctx, alloc, j).Restarts)
	must.Len(t, 1, tokensOf(t, s, j.Name))
}

// whatWaitingCannotCureFailsAtOnce: also while Vault is away.
func whatWaitingCannotCureFailsAtOnce(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	must.NoError(t, proxy.Break(stack.Refused))
	j = behind(t, s, j, time.Hour, time.Hour)
	j.Config += file("secrets/bad", "{{ with secret }", "")
	alloc := run(t, s, j)
	message, took := failure(t, alloc, j.Name)
	must.StrContains(t, message, `template "secrets/bad"`)
	must.Less(t, startTimeout, took)
	must.NoError(t, leftBehind(t, s, j.Name, alloc))
}

// stopDuringTheWait: Nomad cannot interrupt a start, and waits for its end, which is not later than start_timeout.
func stopDuringTheWait(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	ctx := within(t, 2*time.Minute)
	j, alloc := stoppedInTheWait(t, ctx, s, proxy, j)
	last := stopped(t, ctx, alloc, j)
	must.SliceNotContainsFunc(t, last.Events, nomad.TaskStarted, isEvent)
	must.NoError(t, leftBehind(t, s, j.Name, alloc))
}

// stopDuringTheWaitBeforeVaultReturns: Nomad tells the driver of the stop when the start has returned, and not before,
// so that a start that succeeds meanwhile has a process for a moment (client/allocrunner/taskrunner, Kill and
// runDriver).
func stopDuringTheWaitBeforeVaultReturns(t *testing.T, s *stack.Stack, proxy *stack.Proxy, j job) {
	ctx := within(t, 2*time.Minute)
	j, alloc := stoppedInTheWait(t, ctx, s, proxy, j)
	must.NoError(t, proxy.Mend())
	stopped(t, ctx, alloc, j)
	eventually(t, slack, func() error { return leftBehind(t, s, j.Name, alloc) })
}

// stoppedInTheWait starts the job behind a Vault that hangs, and stops it as soon as its start waits.
func stoppedInTheWait(t *testing.T, ctx context.Context, s *stack.Stack, proxy *stack.Proxy, j job) (job,
	*stack.Alloc) {
	t.Helper()
	j = behind(t, s, j, time.Hour, time.Hour)
	must.NoError(t, proxy.Break(stack.Hung))
	alloc := run(t, s, j)
	eventually(t, startTimeout, func() error {
		if proxy.Met() == 0 {
			return errors.New("the start has not asked Vault yet")
		}
		return nil
	})
	_, _, err := s.Nomad.API.Jobs().Deregister(j.Name, false, (&nomad.WriteOptions{}).WithContext(ctx))
	must.NoError(t, err)
	happened(t, ctx, alloc, j, nomad.TaskKilling)
	return j, alloc
}

// stopped waits for the end of the task, which comes within start_timeout of the stop, and returns its last state.
func stopped(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) *nomad.TaskState {
	t.Helper()
	ended, err := alloc.Ended(ctx)
	must.NoError(t, err)
	last := ended.TaskStates[j.Name]
	took := last.FinishedAt.Sub(happened(t, ctx, alloc, j, nomad.TaskKilling))
	t.Logf("ended %v after the stop; started: %v", took, !last.StartedAt.IsZero())
	must.Less(t, startTimeout+stretched(slack), took)
	return last
}

// TestStartFindsASecretThatComesLate: the job's restart block tries again, and nobody has to.
func TestStartFindsASecretThatComesLate(t *testing.T) {
	t.Parallel()
	s := common(t)
	ctx := within(t, 2*time.Minute)
	j := job{Name: "late-secret", Driver: "vault-exec", Type: "system", Args: []string{"show"}, Again: true,
		Group: "restart {\n attempts = 1\n interval = \"5s\"\n delay = \"1s\"\n mode = \"delay\"\n }"}
	j.Config = file("secrets/color", inJob(j, "color"), onNoop)
	alloc := run(t, s, j)
	_, err := alloc.Event(ctx, j.Name, "not found in Vault")
	must.NoError(t, err)
	put(t, s, j, map[string]any{"color": "green"})
	must.NoError(t, alloc.Running(ctx))
}

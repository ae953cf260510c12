package driver

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// taskStatus is what status has of the only task.
func (h *host) taskStatus() status.Task {
	h.Helper()
	return only(h.T, h.Status().Tasks)
}

func TestStatusOfATask(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		cfg := h.job(asApp + templateHCL("secrets/db", creds, onNoop) + templateHCL("local/color", kv, onSignal))
		cfg.JobName, cfg.TaskGroupName, cfg.Namespace = "shop", "front", "prod"
		began := time.Now()
		_, _, err := h.StartTask(cfg)
		must.NoError(t, err)
		after(time.Second)
		got := h.taskStatus()
		must.Eq(t, []string{"alloc-1", "shop", "front", "prod", "web", "running"},
			[]string{got.Alloc, got.Job, got.Group, got.Namespace, got.Name, got.State})
		must.Eq(t, 1, got.Generation)
		must.Eq(t, status.Time(began), got.Since)
		must.StrContains(t, got.Last.Text, "secrets ready")
		must.SliceEmpty(t, got.Trouble)

		session := only(t, got.Sessions)
		must.Eq(t, []string{"default", "default", "app"}, []string{session.Name, session.Cluster, session.Role})
		must.NotEq(t, "", session.Accessor)
		must.Eq(t, "renew", session.Action)
		must.True(t, session.Next.Before(session.Ends))
		must.Len(t, 2, session.Secrets)
		user, color := session.Secrets[0], session.Secrets[1]
		must.Eq(t, []string{"database/creds/app", "leased", "renew"}, []string{user.Path, user.Kind, user.Action})
		must.Eq(t, status.Time(began.Add(time.Hour)), user.Ends)
		must.Eq(t, []string{"secret/data/web", "polled", "read"}, []string{color.Path, color.Kind, color.Action})
		must.True(t, color.Ends.IsZero())

		h.write("blue")
		after(noticed)
		got = h.taskStatus()
		must.Eq(t, 2, got.Generation)
		must.StrContains(t, got.Last.Text, "local/color changed; sent SIGHUP")
		since := got.Since
		h.reboot()
		h.startUnanswered(h.job(asApp + templateHCL("local/color", kv, onSignal))) // which is another run
		after(time.Second)
		must.Eq(t, 1, h.taskStatus().Generation)
		must.True(t, h.taskStatus().Since.After(since))
	})
}

// The next plugin process goes on counting where the one before has stopped.
func TestStatusAfterARecovery(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("local/color", kv, onSignal))
		h.write("blue")
		after(noticed)
		before := h.taskStatus()
		h.reboot()
		must.SliceEmpty(t, h.Status().Tasks)
		must.Eq(t, "web", only(t, h.Status().Parked).Name)
		r.recovered()
		after(time.Minute)
		got := h.taskStatus()
		must.Eq(t, 2, got.Generation)
		must.Eq(t, before.Since, got.Since)
		must.Eq(t, before.Sessions[0].Accessor, only(t, got.Sessions).Accessor)
		must.SliceEmpty(t, h.Status().Parked)
		must.StrContains(t, got.Last.Text, "taken over")
	})
}

func TestStatusOfAnOutage(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(asApp + templateHCL("local/color", kv, onSignal))
		cluster := only(t, h.Status().Clusters)
		must.True(t, cluster.Reachable)
		must.Eq(t, 1, cluster.Sessions)
		h.Down(true)
		began := time.Now()
		after(10 * time.Minute)
		cluster = only(t, h.Status().Clusters)
		must.False(t, cluster.Reachable)
		must.Between(t, 0, cluster.Down.Sub(began), time.Minute)
		must.StrContains(t, only(t, h.taskStatus().Trouble), "Vault unavailable for")
		must.StrContains(t, h.taskStatus().Warned.Text, "the last known good secrets stay in use")

		r.stop()
		parked := only(t, h.Status().Parked)
		must.Between(t, 0, time.Until(parked.Until), stopLinger)
		must.Len(t, 1, parked.Sessions)
		after(time.Minute)
		parked = only(t, h.Status().Parked)
		must.True(t, parked.Until.IsZero())
		must.StrContains(t, parked.Trouble, "Vault unavailable")
		h.Down(false)
		after(2 * time.Minute)
		must.SliceEmpty(t, h.Status().Parked)
		must.True(t, only(t, h.Status().Clusters).Reachable)
	})
}

// A start that waits is shown while it does, with the reason.
func TestStatusOfAStartThatWaits(t *testing.T) {
	bubble(t, func(h *host) {
		h.Down(true)
		go func() { _, _, _ = h.Driver.StartTask(h.job(asApp + templateHCL("local/color", kv, onSignal))) }()
		after(10 * time.Second)
		got := h.taskStatus()
		must.Eq(t, "starting", got.State)
		must.StrContains(t, only(t, got.Trouble), "waiting: ")
		after(2 * time.Minute)
		must.SliceEmpty(t, h.Status().Tasks)
	})
}

// What hangs is shown as under way, and hides nothing.
func TestStatusWhileVaultHangs(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		h.start(asApp + templateHCL("local/color", kv, onSignal))
		mend := h.Break(vaulttest.Fault{Hang: true})
		after(time.Minute)
		cluster := only(t, h.Status().Clusters)
		must.Greater(t, 0, cluster.Queue)
		must.False(t, h.taskStatus().Sessions[0].Secrets[0].Asking.IsZero())
		mend()
		after(5 * time.Minute)
		must.Zero(t, only(t, h.Status().Clusters).Queue)
	})
}

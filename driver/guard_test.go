package driver

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// A panic in the work for one task ends that task, with an error and without its process and its credentials, and a
// neighbour does not notice.
func TestPanicEndsOneTask(t *testing.T) {
	for where, panics := range map[string]func(r *run){
		"in a call of the wrapped driver": func(r *run) { r.inner.panics("signal") },
		"in a session's upkeep": func(r *run) {
			tk, _ := r.task(r.cfg.ID)
			panics := func(context.Context) (string, error) { panic(vaulttest.Planted) }
			tk.credentials.Session("default").Listen(session.Options{Notify: tk.notice, Changed: make(chan struct{}, 1),
				Login: session.Login{Role: "app", JWT: panics}})
			r.RevokeTokens()
		},
		"in the task's own goroutine": func(r *run) {
			tk, _ := r.task(r.cfg.ID)
			reply := make(chan error)
			close(reply)                        // on which nobody can send
			r.inner.failing("stop", errWrapped) // which is an answer, and no end
			tk.stops <- stopRequest{0, "", reply}
		},
	} {
		t.Run(where, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.write("green")
				r := h.start(asApp + templateHCL("local/0", kv, onSignal))
				ended := r.wait()
				neighbour := h.elsewhere(asApp + templateHCL("local/0", kv, onNoop))
				neighbour.AllocID, neighbour.ID = "alloc-2", "alloc-2/web/1"
				_, _, err := h.StartTask(neighbour)
				must.NoError(t, err)
				panics(r)
				h.write("blue")
				select {
				case result := <-ended:
					must.ErrorContains(t, result.Err, "internal error")
				case <-time.After(time.Hour):
					t.Fatal("the task goes on")
				}
				must.Len(t, 1, h.machine.running())
				must.Positive(t, h.logged("panic"))
				must.Eq(t, 0, h.logged(vaulttest.Planted))
				must.NoError(t, h.DestroyTask(r.cfg.ID, true))
				after(10 * time.Minute)
				must.Len(t, 1, h.Tokens())
				text, err := os.ReadFile(filepath.Join(neighbour.AllocDir, "web/local/0"))
				must.NoError(t, err)
				must.Eq(t, "blue", string(text), must.Sprint("the neighbour gets what is new"))
			})
		})
	}
}

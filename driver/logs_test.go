package driver

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/driver/logpipe/logpipetest"
)

func TestLogGoesOnWhenAStartTakesThePlaceOfAnother(t *testing.T) {
	bubble(t, func(h *host) {
		h.stderr = filepath.Join(h.alloc, "stderr")
		must.NoError(t, unix.Mkfifo(h.stderr, 0o600))
		log := logpipetest.Collect(t, h.stderr)
		h.startUnanswered(h.job(asApp))
		h.inner.slow("destroy", time.Minute)
		go func() { _, _, _ = h.StartTask(h.job(asApp)) }()
		after(30 * time.Second)
		must.Eq(t, "[vault-fake] ended: the agent has asked for another start of the task\n", log.Read())
		must.False(t, log.Ended(), must.Sprint("the new one holds it before the old one lets go"))
		after(time.Minute)
		must.False(t, log.Ended())
		log.Close()
	})
}

func TestLogGoesOnOverARestartInTheDriver(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := logpipetest.FIFOs(t, h.alloc)
		out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		h.write("green")
		cfg := h.job(severalTemplates(""))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		_, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		must.StrHasPrefix(t, "[vault-fake] secrets ready after 0s: templates rendered: 1, vault \"default\" token accessor-",
			err.Read())
		h.inner.slow("start", time.Minute) // between the two processes nobody but us holds the pipes
		h.write("blue")
		for len(h.machine.running()) > 0 {
			after(time.Second)
		}
		must.Eq(t, "", out.Read())
		must.Eq(t, "", err.Read())
		after(2 * time.Minute)
		must.Eq(t, "[vault-fake] local/0 changed; restarted\n", err.Read())
		r := &run{host: h, cfg: cfg}
		r.exit(0)
		after(0)
		must.True(t, out.Ended(), must.Sprint("the collector must see the end, or it is waited for"))
		must.True(t, err.Ended())
		out.Close()
		err.Close()
	})
}

// The new process would hang at its first lines.
func TestRestartWaitsForALogCollector(t *testing.T) {
	for how, after3h := range map[string]bool{"that comes soon": false, "that comes after hours": true} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(h *host) {
				stdout, stderr := logpipetest.FIFOs(t, h.alloc)
				out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
				h.write("green")
				cfg := h.job(severalTemplates(""))
				cfg.StdoutPath, cfg.StderrPath = stdout, stderr
				_, _, failed := h.StartTask(cfg)
				must.NoError(t, failed)
				r := &run{host: h, cfg: cfg}
				r.did()
				out.Close()
				err.Close()
				h.write("blue")
				after(noticed)
				must.SliceEmpty(t, r.did())
				if after3h { // a task that runs well is not ended for it
					after(3 * time.Hour)
					must.SliceEmpty(t, r.did())
					must.Len(t, 1, h.machine.running())
				}
				told := h.events()[1:] // of the start is the first
				must.Eq(t, after3h, len(told) == 1 && strings.Contains(told[0],
					"the restart waits: no log collector reads the task's output"))
				out, err = logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
				after(2 * time.Second)
				must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
				must.Len(t, 1, h.events())
				out.Close()
				err.Close()
			})
		})
	}
}

// Each restart has its own minute: one that was not needed any more leaves nothing of its for the next.
func TestRestartThatWasTakenBackWaitsAnewForALogCollector(t *testing.T) {
	bubble(t, func(h *host) {
		stdout, stderr := logpipetest.FIFOs(t, h.alloc)
		out, err := logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		h.write("green")
		cfg := h.job(severalTemplates("poll_interval = \"5s\""))
		cfg.StdoutPath, cfg.StderrPath = stdout, stderr
		_, _, failed := h.StartTask(cfg)
		must.NoError(t, failed)
		r := &run{host: h, cfg: cfg}
		r.did()
		out.Close()
		err.Close()
		h.write("blue")
		after(10 * time.Second)
		h.write("green")
		after(time.Hour)
		h.write("red")
		after(30 * time.Second)
		must.True(t, r.alive())
		must.SliceEmpty(t, r.did())
		out, err = logpipetest.Collect(t, stdout), logpipetest.Collect(t, stderr)
		after(2 * time.Second)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		out.Close()
		err.Close()
	})
}

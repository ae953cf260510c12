package driver

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/driver/vault/session"
	"nomad-driver-vault/internal/logtext"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
)

// say writes one line to the task's own log, where its author looks first, and to the agent's log.
func (t *task) say(format string, args ...any) { t.speak(hclog.Info, fmt.Sprintf(format, args...)) }

// warn is say for what needs a person.
func (t *task) warn(format string, args ...any) { t.speak(hclog.Warn, fmt.Sprintf(format, args...)) }

func (t *task) speak(level hclog.Level, text string) {
	text = logtext.Line(text)
	t.pipes.Say(text)
	t.log(level, text)
	line := &status.Line{At: status.Time(time.Now()), Text: text}
	if t.said.Store(line); level >= hclog.Warn {
		t.warned.Store(line)
	}
}

func (t *task) log(level hclog.Level, text string) {
	t.d.logger.Log(level, text, "alloc_id", t.cfg.AllocID, "task", t.cfg.Name)
}

// problem is something of a task that does not work at the moment. The zero problem is none.
type problem struct {
	text  string
	event bool // nomad alloc status has it, too
}

func (t problem) is() bool { return t.text != "" }

// digits are what differs when the same problem is met twice: for how long it has lasted.
var digits = regexp.MustCompile(`[0-9]+`)

// isNew records what does not work, and reports whether it is something new.
func (t *problem) isNew(text string) bool {
	known := digits.ReplaceAllString(text, "") == digits.ReplaceAllString(t.text, "")
	t.text = text
	return !known
}

// solved reports the end of a problem, if there was one, wherever it was reported.
func (t *task) solved(was problem) {
	const text = "secrets are kept current again"
	if was.is() {
		t.say(text)
	}
	if was.event {
		t.event("Vault: " + text)
	}
}

// remindEvery is how often the agent's log is reminded of what needs a person.
const remindEvery = 5 * time.Minute

// remind writes what is wrong at this moment to the agent's log.
func (t *task) remind() {
	for _, text := range append(t.credentials.Problems(), t.wrong()...) {
		t.log(hclog.Warn, "still: "+text)
	}
}

// event reports the same, shorter, in nomad alloc status. Nomad keeps ten events of a task: there is one for each
// rotation and none for a renewal.
func (t *task) event(format string, args ...any) {
	event := &drivers.TaskEvent{TaskID: t.cfg.ID, TaskName: t.cfg.Name, AllocID: t.cfg.AllocID,
		Timestamp: time.Now(), Message: logtext.Line(fmt.Sprintf(format, args...))}
	select {
	case t.d.outbox <- event:
	default: // the agent takes no events at the moment; the log has the line
	}
}

// notice reports what a session has met. The scheduler calls it, and it waits for nobody: a new token, which a crash
// must not lose, is saved in another goroutine.
func (t *task) notice(n session.Notice) {
	if n.Kind == session.Waiting && !t.starting.Load() {
		return // it runs with what it has, and keepLastGood tells why it gets nothing new
	}
	switch n.Kind {
	case session.Outage, session.Problem, session.Dead, session.Broken:
		t.warn("%s", n.Text)
	default:
		t.say("%s", n.Text)
	}
	switch n.Kind {
	case session.Waiting:
		t.waiting.Store(&n.Text)
		t.event("Vault: %s", n.Text)
	case session.Outage:
		t.event("Vault unavailable: %s", n.Text)
	case session.Recovered:
		t.event("%s", n.Text)
	case session.Problem, session.Dead:
		t.event("Vault: %s", n.Text)
	case session.Replaced:
		go func() {
			_ = t.guard("saving", func() error { // the log has it
				t.save()
				return nil
			})
		}()
	case session.Broken:
		t.abort(errors.New(n.Text))
	}
}

// shown is what others may see of what the task's goroutine owns.
type shown struct {
	generation int
	since      time.Time
	pending    string
	wrong      []string
}

// show lets others see how the task is now. Only its goroutine calls it.
func (t *task) show() {
	s := &shown{generation: t.record.Generation, since: t.record.Since, wrong: t.wrong()}
	if t.pending.Acts() {
		s.pending = t.pending.String()
	}
	t.shown.Store(s)
}

// wrong returns what keeps the task from what is new, one line for each. Only its goroutine calls it.
func (t *task) wrong() (lines []string) {
	if t.record.Unverified {
		lines = append(lines, "a change_script failed: whether the task uses what is new is not known")
	}
	for _, text := range []string{t.problem.text, t.undelivered.text} {
		if text != "" {
			lines = append(lines, text)
		}
	}
	return lines
}

// pump carries our events and the wrapped driver's to the eventer, which may make a slow consumer wait.
func (d *Driver) pump(inner <-chan *drivers.TaskEvent) {
	for {
		var event *drivers.TaskEvent
		select {
		case event = <-d.outbox:
		case event = <-inner:
		case <-d.ctx.Done():
			return
		}
		if event == nil {
			inner = nil // closed: the wrapped driver has ended
			continue
		}
		if err := d.events.EmitEvent(event); err != nil {
			return // the eventer has ended
		}
	}
}

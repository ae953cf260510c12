package wrapped

import (
	"fmt"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-vault/internal/logtext"
)

// concealer keeps values that are in the options of tasks out of the log of Nomad's driver, which has the options of
// each task that it starts: "starting task" of exec and raw_exec has all of them, docker writes its command and labels
// (drivers/exec/driver.go, drivers/docker/driver.go).
type concealer struct {
	mu     sync.RWMutex
	hidden map[*strings.Replacer]bool

	// line is called with each line of Nomad's driver, as that wrote it, unless it is nil.
	line func(msg string, args []any)
}

func newConcealer() *concealer { return &concealer{hidden: map[*strings.Replacer]bool{}} }

// Conceal keeps values, by their variables, out of the log until reveal is called.
func (c *concealer) Conceal(values map[string]string) (reveal func()) {
	if len(values) == 0 {
		return func() {}
	}
	without := logtext.Without(values)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hidden[without] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.hidden, without)
	}
}

// conceal returns what may be logged of the arguments of a line.
func (c *concealer) conceal(args []any) []any {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.hidden) == 0 {
		return args
	}
	shown := make([]any, len(args))
	for i, arg := range args {
		text := fmt.Sprint(arg)
		if format, ok := arg.(hclog.Format); ok {
			text = fmt.Sprintf(format[0].(string), format[1:]...)
		}
		shown[i] = arg
		for without := range c.hidden {
			if safe := without.Replace(text); safe != text {
				text, shown[i] = safe, safe
			}
		}
	}
	return shown
}

// log is a logger for Nomad's driver.
func (c *concealer) log(to hclog.Logger) hclog.Logger { return concealed{to, c} }

// concealed is a logger that conceals what is hidden when a line is written.
type concealed struct {
	hclog.Logger
	from *concealer
}

// Log, and the methods below it, write a line of that level.
func (l concealed) Log(level hclog.Level, msg string, args ...any) {
	if l.from.line != nil {
		l.from.line(msg, args)
	}
	l.Logger.Log(level, msg, l.from.conceal(args)...)
}

func (l concealed) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l concealed) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l concealed) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l concealed) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l concealed) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// With, Named and ResetNamed return loggers that conceal as well.
func (l concealed) With(args ...any) hclog.Logger {
	return l.from.log(l.Logger.With(l.from.conceal(args)...))
}

func (l concealed) Named(name string) hclog.Logger      { return l.from.log(l.Logger.Named(name)) }
func (l concealed) ResetNamed(name string) hclog.Logger { return l.from.log(l.Logger.ResetNamed(name)) }

// Package inherited undoes what a process of this program has from who started it and what would harm a task. It does
// so in its init, for the plugin and for the executors, which are this program too.
//
// The package imports nothing but the standard library so that it is initialised before Nomad's executor, whose init
// function never returns in an executor process.
package inherited

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Nobody reads the channels of signals: a signal that is notified does nothing to this process, and is as Nomad's own
// drivers have it in the processes that it starts.
func init() {
	surviveReaders()
	passOnSignals()
	if len(os.Args) == 3 && os.Args[1] == "executor" {
		os.Args[2] = quiet(os.Args[2])
	}
}

// surviveReaders keeps this program alive when the reader of its standard error has died. Go ends a process whose write
// to file descriptor 1 or 2 meets a broken pipe, unless SIGPIPE is notified (https://pkg.go.dev/os/signal). The
// plugin's standard error is read by the Nomad agent, an executor's by the plugin: a killed agent would take the plugin
// with it at the next log line, and a killed plugin its executors and their tasks (hashicorp/nomad#27815).
//
// Notify, not Ignore: an ignored signal stays ignored across exec, and tasks rely on SIGPIPE ending a pipeline.
func surviveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// passOnSignals gives tasks the signals that this process was started to ignore, as nohup and shells do it with what
// they start in the background: tasks inherit that, and would never get them. Go leaves these two ignored, and only
// these; tasks of Nomad's own drivers get them because the agent catches them (command/agent/command.go).
func passOnSignals() {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// quiet makes of an executor's configuration one that writes no debug lines into executor.out, a file in the task's
// directory: one of them has the task's arguments (drivers/shared/executor/executor_linux_cgo.go, Launch), in which
// $(NAME) may have been replaced by a secret.
func quiet(config string) string {
	return strings.Replace(config, `"LogLevel":"debug"`, `"LogLevel":"info"`, 1)
}

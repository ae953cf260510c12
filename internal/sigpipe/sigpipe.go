// Package sigpipe keeps this program alive when the reader of its standard error has died. Go ends a process whose
// write to file descriptor 1 or 2 meets a broken pipe, unless SIGPIPE is notified (https://pkg.go.dev/os/signal). The
// plugin's standard error is read by the Nomad agent, an executor's by the plugin: a killed agent would take the plugin
// with it at the next log line, and a killed plugin its executors and their tasks (hashicorp/nomad#27815).
//
// The package imports nothing but the standard library so that it is initialised before Nomad's executor, whose init
// function never returns in an executor process.
package sigpipe

import (
	"os"
	"os/signal"
	"syscall"
)

// Notify, not Ignore: an ignored signal stays ignored across exec, and tasks rely on SIGPIPE ending a pipeline. Nobody
// reads the channel, the write error is what the writer sees.
func init() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}

//go:build faults

package faults

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// dirVariable names the directory in which a test asks for a crash: by a file <task>.<step>.
const dirVariable = "NOMAD_DRIVER_VAULT_FAULTS"

// Point ends this process when a test has asked for that at this step of the task whose key is <allocation>/<task>. It
// removes the file that asked, so that the next process gets past the step.
func Point(key, step string) {
	dir := os.Getenv(dirVariable)
	_, task, _ := strings.Cut(key, "/")
	if dir != "" && os.Remove(filepath.Join(dir, task+"."+step)) == nil {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal arrives
	}
}

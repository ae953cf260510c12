//go:build !cgo

package main

import (
	"fmt"
	"os"
)

// Without cgo Nomad's exec driver still builds, and runs its tasks with no isolation at all
// (drivers/shared/executor/executor_linux.go).
func init() {
	fmt.Fprintln(os.Stderr, "nomad-driver-vault: built without cgo, which the isolation of exec tasks needs: build "+
		"with CGO_ENABLED=1")
	os.Exit(1)
}

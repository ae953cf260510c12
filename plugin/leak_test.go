package plugin

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"nomad-driver-vault/internal/leaktest"
)

// The docker driver keeps its connections to the engine, and Nomad's harness for driver tests those to the driver:
// its Kill is a data race of go-plugin's server with itself.
func TestMain(m *testing.M) {
	// nohup has us ignore SIGHUP, and what Nomad's tests run in a terminal would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	leaktest.Main(m, "net/http.(*persistConn)", "google.golang.org/grpc", "hashicorp/go-plugin", "hashicorp/yamux")
}

package plugin

import (
	"testing"

	"nomad-driver-vault/driver/leaktest"
)

// The docker driver keeps its connections to the engine, and Nomad's harness for driver tests those to the driver: its Kill is a data race of
// go-plugin's server with itself.
func TestMain(m *testing.M) {
	leaktest.Main(m, "net/http.(*persistConn)", "google.golang.org/grpc", "hashicorp/go-plugin", "hashicorp/yamux")
}

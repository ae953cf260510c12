package plugin

import (
	"testing"

	"nomad-driver-vault/driver/leaktest"
)

// The docker driver keeps its connections to the engine, and the harness of the tests one goroutine for each of its own.
func TestMain(m *testing.M) {
	leaktest.Main(m, "net/http.(*persistConn)", "grpcsync.(*CallbackSerializer)")
}

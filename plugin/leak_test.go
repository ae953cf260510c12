package plugin

import (
	"testing"

	"nomad-driver-vault/driver/leaktest"
)

// The docker driver keeps its connections to the engine.
func TestMain(m *testing.M) { leaktest.Main(m, "net/http.(*persistConn)") }

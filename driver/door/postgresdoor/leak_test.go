package postgresdoor

import (
	"testing"

	"nomad-driver-vault/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

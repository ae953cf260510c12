package status

import (
	"testing"

	"nomad-driver-vault/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

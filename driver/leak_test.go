package driver

import (
	"testing"

	"nomad-driver-vault/driver/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

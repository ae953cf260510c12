// Package need is for tests that want more of a machine than every one has.
package need

import (
	"os"
	"testing"
)

// Skip skips the test for want of what. In CI, where the environment variable CI is set, it fails the test: nothing is
// skipped there.
func Skip(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs " + what)
	}
	t.Skip("needs " + what)
}

// Root skips the test like Skip unless root runs it.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "root")
	}
}

package need

import (
	"testing"

	"github.com/shoenig/test/must"
)

// outcome is a test that notes how it ended.
type outcome struct {
	testing.TB
	text string
}

func (o *outcome) Helper()           {}
func (o *outcome) Fatal(args ...any) { o.text = "failed: " + args[0].(string) }
func (o *outcome) Skip(args ...any)  { o.text += "skipped: " + args[0].(string) }

func TestNothingIsSkippedInCI(t *testing.T) {
	for ci, wants := range map[string]string{"": "skipped: needs a Vault", "true": "failed: this test needs a Vault"} {
		t.Setenv("CI", ci)
		o := &outcome{TB: t}
		Skip(o, "a Vault")
		must.StrHasPrefix(t, wants, o.text)
	}
}

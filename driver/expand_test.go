package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

// pass has the process's arguments name the variable that a secret block sets.
func pass(args, more string) string {
	return asApp + fmt.Sprintf("args = %s\n", args) + secretHCL("k", "env = true\n include = [\"k\"]\n "+more)
}

func TestArgumentsFollowTheSecretAndOutliveThePlugin(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(pass(`["--color=$(k)", "$$(k)", "$(other)"]`, ""))
		must.Eq(t, []string{"--color=green", "$(k)", "$(other)"}, r.process().args)
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"--color=blue", "$(k)", "$(other)"}, r.process().args)
		h.reboot()
		r.recovered()
		h.write("$(k) red")
		after(noticed)
		must.Eq(t, []string{"--color=$(k) red", "$(k)", "$(other)"}, r.process().args)
		must.Eq(t, "$(k) red", r.process().env["k"])
	})
}

// Nobody restarts a process for its arguments whose author wants it left alone.
func TestArgumentsStayWithAProcessThatIsNotRestarted(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(pass(`["$(k)"]`, onNoop))
		h.write("blue")
		after(noticed)
		must.Eq(t, []string{"green"}, r.process().args)
	})
}

func TestValueInAnArgumentIsNotTold(t *testing.T) {
	bubble(t, func(h *host) {
		h.write(vaulttest.Planted)
		r := h.start(pass(`["$(k)"]`, ""))
		must.Eq(t, []string{vaulttest.Planted}, r.process().args)
		stored := r.stored()
		must.StrNotContains(t, string(stored.DriverState), vaulttest.Planted)
		must.StrContains(t, string(stored.DriverState), "$(k)")
		r.stop()

		h.inner.failing("start", structs.NewRecoverableError(errors.New("no program "+vaulttest.Planted), true))
		_, _, err := h.StartTask(h.job(pass(`["$(k)"]`, "")))
		must.EqError(t, err, "no program $(k)")
		must.True(t, structs.IsRecoverable(err))
	})
}

// The last known good arguments stay where the new ones cannot be passed.
func TestArgumentThatIsTooLong(t *testing.T) {
	bubble(t, func(h *host) {
		h.write("green")
		r := h.start(pass(`["$(k)"]`, ""))
		h.write(strings.Repeat("x", 128<<10))
		after(noticed)
		must.Eq(t, []string{"green"}, r.process().args)
		must.Positive(t, h.logged(`config args[0]: longer than 131071 bytes with the value of k: use a file`))
	})
}

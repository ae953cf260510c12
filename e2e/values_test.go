package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// TestDispatchedMetaIsNeverTemplateCode dispatches a job with a user as anybody may have one, and with one that asks
// for a secret which the job's policies allow and its template does not show.
func TestDispatchedMetaIsNeverTemplateCode(t *testing.T) {
	s, j := common(t), job{Name: "dispatched", Driver: "vault-exec", Type: "batch",
		Args: []string{"show", "/secrets/user"}}
	put(t, s, j, map[string]any{"admin": "other-secret"})
	j.Config = file("secrets/user", "user=${NOMAD_META_user} of ${NOMAD_REGION}", onNoop)
	spec := strings.Replace(j.spec(), `type = "batch"`,
		"type = \"batch\"\n parameterized {\n meta_required = [\"user\"]\n }", 1)
	ctx := within(t, 3*time.Minute)
	registered, err := s.Nomad.Run(ctx, spec, nil)
	must.NoError(t, err)
	dispatch := func(user string) *stack.Alloc {
		made, err := registered.Dispatch(ctx, map[string]string{"user": user})
		must.NoError(t, err)
		alloc, err := made.Alloc(ctx)
		must.NoError(t, err)
		return alloc
	}
	must.Eq(t, "user=O'Neil {x} of global", shown(t, ctx, dispatch("O'Neil {x}"), j, "/secrets/user", 1)[0])

	attack := dispatch("x " + inJob(j, "admin"))
	_, err = attack.Event(ctx, j.Name, `the value of NOMAD_META_user would be template code here: in place of ${NOMAD_META_user} write {{ env "NOMAD_META_user" }}`)
	must.NoError(t, err)
	_, err = os.Stat(attack.Path(j.Name, "secrets/user"))
	must.ErrorIs(t, err, os.ErrNotExist)
	jobs, _, err := s.Nomad.API.Jobs().PrefixList(j.Name)
	must.NoError(t, err)
	for _, stub := range jobs {
		_, _, err := s.Nomad.API.Jobs().Deregister(stub.ID, true, nil)
		must.NoError(t, err)
	}
}

// TestRenderedFilesDoNotMoveToTheNextVersion replaces a job by one without its templates, on a disk that Nomad hands
// on: what the task has written itself is there, what was rendered for it is not.
func TestRenderedFilesDoNotMoveToTheNextVersion(t *testing.T) {
	each(t, "sticky", func(t *testing.T, s *stack.Stack, j job) {
		ctx := within(t, 3*time.Minute)
		put(t, s, j, map[string]any{"color": "green"})
		j.Group = "ephemeral_disk {\n sticky = true\n migrate = true\n }"
		j.Config = file("local/color", inJob(j, "color"), onNoop) + file("alloc/data/color", inJob(j, "color"), onNoop)
		_, first := register(t, s, shell(j, "cd $NOMAD_TASK_DIR; echo mine > own; cat color; echo; "+stay))
		_, err := first.Log(ctx, j.Name, "stdout", "green", 1)
		must.NoError(t, err)
		j.Config = ""
		next, err := s.Nomad.Run(ctx, shell(j, "cd $NOMAD_TASK_DIR; cat own; ls . $NOMAD_ALLOC_DIR/data; "+stay), nil)
		must.NoError(t, err)
		var second *stack.Alloc
		eventually(t, time.Minute, func() error {
			second, err = next.Alloc(ctx)
			if err == nil && second.ID == first.ID {
				err = errors.New("there is no new allocation")
			}
			return err
		})
		_, err = second.Log(ctx, j.Name, "stdout", "mine", 1)
		must.NoError(t, err)
		_, err = second.Wait(ctx, "the task to run", func(a *nomad.Allocation) bool {
			return a.ClientStatus == nomad.AllocClientStatusRunning
		})
		must.NoError(t, err)
		for _, name := range []string{second.Path(j.Name, "local/color"), second.Path("alloc", "data/color")} {
			_, err := os.Stat(name)
			must.ErrorIs(t, err, os.ErrNotExist)
		}
		_, err = os.Stat(second.Path(j.Name, "local/own"))
		must.NoError(t, err)
	})
}

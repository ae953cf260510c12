package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// Images of a registry that wants a password, which the job has from Vault.

// registry starts one, for the test.
func registry(t *testing.T, s *stack.Stack, user, password string) *stack.Registry {
	t.Helper()
	r, err := s.StartRegistry(user, password)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, r.Close()) })
	return r
}

// private is a job whose image is in such a registry, and the registry. more is HCL of its auth block beside
// vault_path.
func private(t *testing.T, s *stack.Stack, user, password, more string) (job, string, *stack.Registry) {
	t.Helper()
	r := registry(t, s, user, password)
	j := job{Name: "pull-" + strings.ToLower(rand.Text()[:6]), Driver: "vault-docker", Args: []string{"show"}}
	j.Config = fmt.Sprintf("force_pull = true\n auth {\n vault_path = \"kv/data/default/%s/config\"\n %s\n }\n", j.Name,
		more)
	return j, strings.Replace(j.spec(), stack.Image, r.Addr+"/"+j.Name+":1", 1), r
}

func TestImagesArePulledWithCredentialsFromVault(t *testing.T) {
	t.Parallel()
	s, ctx := common(t), within(t, 3*time.Minute)
	first, second := rand.Text(), rand.Text()
	j, spec, registry := private(t, s, "puller", first, "")
	w, path := watched(s, j), "kv/data/default/"+j.Name+"/config"
	put(t, s, j, map[string]any{"username": "puller", "password": first})
	_, alloc := register(t, s, spec)
	must.NoError(t, alloc.Running(ctx))
	asked := registry.Asked(j.Name)
	must.Positive(t, asked)
	must.One(t, w.granted(t, path))

	put(t, s, j, map[string]any{"username": "another", "password": second})
	registry.Login("another", second)
	must.NoError(t, alloc.Restart(ctx, j.Name))
	_, err := alloc.Log(ctx, j.Name, "stdout", "(?m)^started show$", 2)
	must.NoError(t, err)
	must.Greater(t, asked, registry.Asked(j.Name))
	must.Eq(t, 2, w.granted(t, path), must.Sprint("once for each start"))
	must.One(t, w.granted(t, "auth/jwt-nomad/login"))
	event, err := alloc.Event(ctx, j.Name, "Secrets ready")
	must.NoError(t, err)
	must.StrContains(t, event, "templates rendered: 0, registry credentials read, vault \"default\" token ")

	secrets := map[string]string{}
	for user, password := range map[string]string{"puller": first, "another": second} {
		secrets["password of "+user] = password
		secrets["login of "+user] = base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		secrets["header of "+user] = fmt.Sprintf("%q:%q", "password", password)
	}
	must.SliceEmpty(t, told(t, s, alloc, j, secrets))
	must.SliceNotEmpty(t, told(t, s, alloc, j, map[string]string{"name of the image": registry.Addr + "/" + j.Name}))
	stop(t, ctx, s, alloc, j)
	eventually(t, slack, func() error { return leftBehind(t, s, j.Name, alloc) })
	must.SliceEmpty(t, search(t, s, secrets))
}

// told looks for secrets in all that shows of a running task outside of the driver: docker inspect, the processes, what
// Nomad's API has of the allocation, the allocation's files, and what the servers keep on disk and log.
func told(t *testing.T, s *stack.Stack, alloc *stack.Alloc, j job, secrets map[string]string) []string {
	t.Helper()
	ctx := within(t, time.Minute)
	inspected, err := alloc.Container(ctx, j.Name)
	must.NoError(t, err)
	now, err := alloc.Wait(ctx, "allocation", func(*nomad.Allocation) bool { return true })
	must.NoError(t, err)
	status, err := json.Marshal(now)
	must.NoError(t, err)
	places := map[string]string{"docker inspect": string(inspected), "alloc status": string(status)}
	for _, p := range processes(alloc) {
		places[fmt.Sprint("process ", p.pid)] = string(p.environ) + string(p.cmdline)
	}
	must.NoError(t, eachFile(alloc.Path("", ""), func(name string, content []byte) { places[name] = string(content) }))
	found := search(t, s, secrets)
	for place, content := range places {
		for what, secret := range secrets {
			if strings.Contains(content, secret) {
				found = append(found, what+" in "+place)
			}
		}
	}
	return found
}

func TestAWrongRegistryPasswordFailsTheStart(t *testing.T) {
	t.Parallel()
	s := common(t)
	wrong := rand.Text()
	j, spec, registry := private(t, s, "puller", rand.Text(), `username = "puller"`+"\n"+`password_key = "token"`)
	put(t, s, j, map[string]any{"token": wrong})
	registered, alloc := register(t, s, spec)
	message, _ := failure(t, alloc, j.Name)
	t.Log(message)
	must.StrContains(t, message, "Failed to pull `"+registry.Addr+"/"+j.Name+":1`")
	must.StrContains(t, message, "unauthorized", must.Sprint("what Docker says is passed on"))
	must.Zero(t, registry.Asked(j.Name))
	log, err := os.ReadFile(alloc.Path("alloc", "logs/"+j.Name+".stderr.0"))
	must.NoError(t, err)
	must.StrContains(t, string(log), "not started: Failed to pull")
	must.StrNotContains(t, message+string(log), wrong)
	must.SliceEmpty(t, search(t, s, map[string]string{"password": wrong}))
	eventually(t, slack, func() error { return leftBehind(t, s, registered.ID, alloc) })
}

// TestFilesOfAnImagesUser: the image names who runs in the container, and numbers its users by itself.
func TestFilesOfAnImagesUser(t *testing.T) {
	t.Parallel()
	s, ctx := common(t), within(t, 3*time.Minute)
	for user, uid := range map[string]int{"1000": 1000, "nobody": 65534} {
		t.Run(user, func(t *testing.T) {
			image, err := s.ImageWithUser(ctx, user)
			must.NoError(t, err)
			j := job{Name: "image-user-" + user, Driver: "vault-docker", Args: []string{"show"}}
			path := "kv/data/default/" + j.Name + "/config"
			j.Config = fmt.Sprintf("secret \"color\" {\n path = %q\n key = \"color\"\n change_mode = \"noop\"\n"+
				"poll_interval = \"5s\"\n}\n", path) + file("secrets/roots", "x", "perms = \"0600\"")
			put(t, s, j, map[string]any{"color": "green"})
			_, alloc := register(t, s, strings.Replace(j.spec(), stack.Image, image, 1))
			must.NoError(t, alloc.Running(ctx))
			_, err = alloc.Event(ctx, j.Name,
				fmt.Sprintf("the container's user %d cannot read secrets/roots: set uid = %d there, or other perms", uid, uid))
			must.NoError(t, err)
			reads := func(color string) error {
				out, stderr, code, err := alloc.Exec(ctx, j.Name, false, "", "cat", "/secrets/color")
				if err == nil && (code != 0 || out != color) {
					err = fmt.Errorf("it reads %q, exit code %d: %s", out, code, stderr)
				}
				return err
			}
			must.NoError(t, reads("green"))
			put(t, s, j, map[string]any{"color": "blue"})
			eventually(t, slack, func() error { return reads("blue") })
			stop(t, ctx, s, alloc, j)
			eventually(t, slack, func() error { return leftBehind(t, s, j.Name, alloc) })
		})
	}
}

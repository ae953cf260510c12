package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/e2e/stack"
)

// TestPublishedUnderTheWrappedDriversName: an operator puts the plugin in the place of the built-in drivers, while
// their tasks run, and takes it away again. Nobody who does not use our blocks notices. Who does is told, and what his
// tasks had can be taken back.
func TestPublishedUnderTheWrappedDriversName(t *testing.T) {
	t.Parallel()
	s := own(t, stack.Options{Plugins: []stack.Plugin{}, Agent: patient, Postgres: true})
	ctx := within(t, 6*time.Minute)
	serve := func(plugins ...stack.Plugin) {
		t.Helper()
		must.NoError(t, s.Nomad.Stop())
		must.NoError(t, s.Nomad.Serve(plugins...))
		must.NoError(t, s.Nomad.Start(ctx))
	}

	kept, passing, late := map[string]*keeper{}, map[string]*keeper{}, map[string]*keeper{}
	forgotten := map[string][]*forgotten{}
	before := byDriver(t, "built-in", func(t *testing.T, driver string) []string { return experience(t, s, driver) })
	for _, driver := range named {
		kept[driver], passing[driver] = keep(t, ctx, s, "kept", driver), keep(t, ctx, s, "passing", driver)
	}

	serve(inPlace()...)
	after := byDriver(t, "ours", func(t *testing.T, driver string) []string {
		must.Len(t, 1, plugins(s, driver), must.Sprint("the plugin serves, and not the built-in driver"))
		kept[driver].works(t, ctx, s)
		passing[driver].works(t, ctx, s)
		passing[driver].stops(t, ctx, s)
		getsItsSecrets(t, s, driver)
		return experience(t, s, driver)
	})
	for _, driver := range named {
		must.Eq(t, before[driver], after[driver], must.Sprint(driver))
		late[driver], forgotten[driver] = keep(t, ctx, s, "late", driver), forget(t, ctx, s, driver)
	}

	serve()
	byDriver(t, "built-in again", func(t *testing.T, driver string) []string {
		must.Len(t, 0, plugins(s, driver))
		for _, k := range []*keeper{kept[driver], late[driver]} {
			k.works(t, ctx, s)
			k.stops(t, ctx, s)
		}
		refusesOurBlocks(t, ctx, run(t, s, job{Name: "new-" + driver, Driver: driver, Args: []string{"show"},
			Config: "vault {}"}))
		for _, f := range forgotten[driver] {
			f.ends(t, ctx, s)
		}
		return nil
	})

	serve(inPlace()...)
	byDriver(t, "ours again", func(t *testing.T, driver string) []string {
		for _, f := range forgotten[driver] {
			eventually(t, time.Minute, func() error { return leftBehind(t, s, f.job.Name, f.alloc) })
		}
		return nil
	})
}

// inPlace are the plugins under the names of the built-in drivers. What their tasks leave waits no longer than a test
// should.
func inPlace() (all []stack.Plugin) {
	for _, driver := range named {
		p := stack.Wrap(driver, driver)
		p.Config += "\nlinger = \"5s\"\n"
		all = append(all, p)
	}
	return all
}

var named = []string{"exec", "docker", "raw_exec"}

// byDriver runs a test for all drivers side by side, and returns what came of it when all have ended.
func byDriver(t *testing.T, name string, test func(t *testing.T, driver string) []string) map[string][]string {
	t.Helper()
	var mu sync.Mutex
	results := map[string][]string{}
	ok := t.Run(name, func(t *testing.T) {
		for _, driver := range named {
			t.Run(driver, func(t *testing.T) {
				t.Parallel()
				result := test(t, driver)
				mu.Lock()
				defer mu.Unlock()
				results[driver] = result
			})
		}
	})
	must.True(t, ok)
	return results
}

// A keeper is a task without our blocks whose process is to survive.
type keeper struct {
	job     job
	alloc   *stack.Alloc
	pid     int
	signals int

	// fragile is a task whose executor dies of the next `alloc exec` once the agent that started it has ended, with Nomad
	// 1.11.3 on its own, too: https://github.com/hashicorp/nomad/issues/27815. Ours do not.
	fragile bool
}

func keep(t *testing.T, ctx context.Context, s *stack.Stack, name, driver string) *keeper {
	t.Helper()
	j := job{Name: name + "-" + driver, Driver: driver, Args: []string{"show"}}
	k := &keeper{job: j, alloc: run(t, s, j)}
	_, err := k.alloc.Log(ctx, j.Name, "stdout", "started show", 1)
	must.NoError(t, err)
	k.pid, k.fragile = application(t, k.alloc), driver == "exec" && len(plugins(s, driver)) == 0
	return k
}

// works checks that it is the same process, that Nomad's commands reach it, and that its log goes on.
func (k *keeper) works(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	name := k.job.Name
	eventually(t, time.Minute, func() error { return k.alloc.Signal(ctx, name, "SIGHUP") })
	k.signals++
	_, err := k.alloc.Log(ctx, name, "stdout", "signal hangup", k.signals)
	must.NoError(t, err)
	if !k.fragile {
		stdout, stderr, code := execute(t, k.alloc, k.job, false, "", "echo here; exit 3")
		must.Eq(t, "here\n3", fmt.Sprint(stdout, code), must.Sprint(stderr))
	}
	measured(t, s, k.alloc, name)
	must.Len(t, 1, applications(k.alloc))
	must.Eq(t, k.pid, application(t, k.alloc))
	must.Zero(t, state(t, ctx, k.alloc, k.job).Restarts)
}

// stops checks that `nomad job stop` ends the process.
func (k *keeper) stops(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	stop(t, ctx, s, k.alloc, k.job)
	must.Len(t, 0, applications(k.alloc))
	now := state(t, ctx, k.alloc, k.job)
	must.False(t, now.Failed)
	last := now.Events[len(now.Events)-2 : len(now.Events)]
	must.Eq(t, []string{nomad.TaskTerminated, nomad.TaskKilled}, []string{last[0].Type, last[1].Type})
}

// measured waits for statistics of the task, and returns what of its memory is measured.
func measured(t *testing.T, s *stack.Stack, alloc *stack.Alloc, task string) (what []string) {
	t.Helper()
	began := time.Now().UnixNano()
	eventually(t, 30*time.Second, func() error {
		usage, err := s.Nomad.API.Allocations().Stats(&nomad.Allocation{ID: alloc.ID}, nil)
		if err != nil {
			return err
		}
		now := usage.Tasks[task]
		if now == nil || now.Timestamp < began || now.ResourceUsage.MemoryStats.Usage+now.ResourceUsage.MemoryStats.RSS == 0 {
			return fmt.Errorf("no statistics: %+v", now)
		}
		what = now.ResourceUsage.MemoryStats.Measured
		return nil
	})
	return what
}

// plainJob is a job that says of all that a driver does for it what has become of it.
const plainJob = `
job "%[2]s-%[1]s" {
  type = "%[2]s"
  group "%[2]s-%[1]s" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    network {
      port "http" {}
    }
    volume "app" {
      type      = "host"
      source    = "app"
      read_only = true
    }
    task "%[2]s-%[1]s" {
      driver       = "%[1]s"
      user         = "nobody"
      kill_signal  = "SIGUSR2"
      kill_timeout = "8s"
      env {
        COLOR = "green"
      }
      resources {
        cpu    = 50
        memory = 64
      }
      template {
        destination = "local/conf/size"
        data        = "large"
      }
      %[3]s
        args = ["-c", <<EOT
          echo "$0"; env | sort; id; ls /opt/app; cat local/conf/size $NOMAD_TASK_DIR/conf/size /etc/app/size; grep Cap /proc/self/status; cat /proc/self/oom_score_adj; pwd; umask
          trap 'echo signalled' USR1; trap 'exit 4' USR2
          [ $0 = 7 ] && exit 7
          echo said >&2; echo through; echo >$NOMAD_TASK_DIR/ready; while :; do sleep 0.1; done
        EOT
        , "%[4]s"]
      }
    }
  }
}`

// ofDriver is what each driver has of its own in it: where the volume is mounted, and the beginning of the config
// block.
var ofDriver = map[string]string{
	"exec": appVolume + "config {\n command = \"/bin/sh\"\n cap_drop = [\"chown\"]",
	"docker": appVolume + fmt.Sprintf("config {\n image = %q\n entrypoint = [\"/bin/sh\"]\n ports = [\"http\"]\n "+
		"hostname = \"plain\"\n", stack.Image) +
		"volumes = [\"local/conf:/etc/app:ro\"]\n cap_drop = [\"chown\"]\n labels {\n team = \"blue\"\n }",
	"raw_exec": "config {\n command = \"/bin/sh\"\n oom_score_adj = 100\n denied_envvars = [\"TMP*\"]",
}

const appVolume = "volume_mount {\n volume = \"app\"\n destination = \"/opt/app\"\n read_only = true\n }\n"

// experience is what the author of a job without our blocks sees of it, from its start to its end, but for what is
// never the same twice.
func experience(t *testing.T, s *stack.Stack, driver string) (seen []string) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	j := job{Name: "service-" + driver, Driver: driver}
	_, alloc := register(t, s, fmt.Sprintf(plainJob, driver, "service", ofDriver[driver], "${NOMAD_TASK_NAME}"))
	see := func(what, text string) {
		text = strings.NewReplacer(alloc.ID, "ALLOC", alloc.ID[:8], "SHORT").Replace(text)
		seen = append(seen, what+": "+dynamicPort.ReplaceAllString(text, "PORT"))
	}
	_, err := alloc.Log(ctx, j.Name, "stderr", "said", 1)
	must.NoError(t, err)
	see("stdout", whole(t, ctx, alloc, j, "through"))
	stderr, err := alloc.Logs(ctx, j.Name, "stderr")
	must.NoError(t, err)
	see("stderr", stderr)
	if j.Docker() {
		see("docker inspect", inspected(t, ctx, alloc, j))
	}
	see("alloc stats", fmt.Sprint(measured(t, s, alloc, j.Name)))
	ready := func() error { _, err := os.Stat(alloc.Path(j.Name, "local/ready")); return err }
	eventually(t, time.Minute, ready)
	stdout, stderr, code := execute(t, alloc, j, false, "in",
		"cat; echo $COLOR; id; pwd; rm -f $NOMAD_TASK_DIR/ready; echo err >&2; exit 3")
	see("alloc exec", fmt.Sprint(stdout, stderr, code))
	must.NoError(t, alloc.Signal(ctx, j.Name, "SIGUSR1"))
	_, err = alloc.Log(ctx, j.Name, "stdout", "signalled", 1)
	must.NoError(t, err)
	must.NoError(t, alloc.Restart(ctx, j.Name))
	_, err = alloc.Wait(ctx, "restarted task", func(a *nomad.Allocation) bool {
		task := a.TaskStates[j.Name]
		return task.Restarts == 1 && task.State == "running"
	})
	must.NoError(t, err)
	eventually(t, time.Minute, ready)
	stop(t, ctx, s, alloc, j)
	see("events", eventTexts(t, ctx, alloc, j))

	_, alloc = register(t, s, fmt.Sprintf(plainJob, driver, "batch", ofDriver[driver], "7"))
	ended, err := alloc.Ended(ctx)
	must.NoError(t, err)
	see("batch job", ended.ClientStatus+"\n"+eventTexts(t, ctx, alloc, job{Name: "batch-" + driver}))
	return seen
}

// dynamicPort is one that Nomad chooses.
var dynamicPort = regexp.MustCompile(`\b(2\d|3[01])\d{3}\b`)

// eventTexts are the messages of the task's events, in their order.
func eventTexts(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) string {
	t.Helper()
	var all strings.Builder
	for _, e := range state(t, ctx, alloc, j).Events {
		fmt.Fprintf(&all, "%s: %s\n", e.Type, e.DisplayMessage)
	}
	return all.String()
}

// inspected is how the task's container is configured, but for what ours mounts of the allocation in another way: it
// has followed the paths itself, and shows the container what root opens there read-only.
func inspected(t *testing.T, ctx context.Context, alloc *stack.Alloc, j job) string {
	t.Helper()
	all, err := alloc.Container(ctx, j.Name)
	must.NoError(t, err)
	var container struct{ Config, HostConfig map[string]any }
	must.NoError(t, json.Unmarshal(all, &container))
	env, _ := container.Config["Env"].([]any)
	slices.SortFunc(env, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	mounts, _ := container.HostConfig["Mounts"].([]any)
	container.HostConfig["Mounts"] = slices.DeleteFunc(mounts,
		func(m any) bool { return strings.Contains(fmt.Sprint(m), "/.mounts-") })
	text, err := json.MarshalIndent(container, "", " ")
	must.NoError(t, err)
	return regexp.MustCompile(`"[^"]*/(local/conf|\.mounts-[^/]*/\d+):/etc/app`).ReplaceAllString(string(text),
		`"CONF:/etc/app`)
}

// getsItsSecrets runs a job with our blocks.
func getsItsSecrets(t *testing.T, s *stack.Stack, driver string) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	j := job{Name: "secrets-" + driver, Driver: driver, Args: []string{"show", "secrets/color"}}
	put(t, s, j, map[string]any{"color": "green"})
	j.Config = file("secrets/color", inJob(j, "color"), onSignal)
	alloc := run(t, s, j)
	must.Eq(t, []string{"green"}, shown(t, ctx, alloc, j, "secrets/color", 1))
	must.Len(t, 1, tokensOf(t, s, j.Name))
	put(t, s, j, map[string]any{"color": "blue"})
	must.Eq(t, "blue", shown(t, ctx, alloc, j, "secrets/color", 2)[1])
	stop(t, ctx, s, alloc, j)
	eventually(t, slack, func() error { return unrevoked(t, ctx, s, j.Name) })
	if driver == "docker" {
		runExample(t, s, "in-place.nomad.hcl")
	}
}

// A forgotten is a task with our blocks that nobody has stopped before the plugin was taken away.
type forgotten struct {
	job   job
	alloc *stack.Alloc

	renewed   bool // its token ends soon when nobody renews it any more
	restarted bool // by the plugin, so that the built-in driver does not know its process
}

func forget(t *testing.T, ctx context.Context, s *stack.Stack, driver string) (all []*forgotten) {
	t.Helper()
	for name, period := range map[string]string{"renewed": "15s", "restarted": "1h"} {
		j := job{Name: name + "-" + driver, Driver: driver, Args: []string{"show", "secrets/color"}}
		put(t, s, j, map[string]any{"color": "green"})
		policy := fmt.Sprintf(`path "kv/data/default/%s/*" { capabilities = ["read"] } path "database/creds/%[1]s" { capabilities = ["read"] }`, j.Name)
		j = withDatabase(t, s, j, time.Hour, policy, onNoop)
		must.NoError(t, s.Vault.Role(ctx, j.Name, policy, map[string]any{"token_period": period}))
		j.Config += file("secrets/color", inJob(j, "color"), onRestart)
		f := &forgotten{job: j, alloc: run(t, s, j), renewed: name == "renewed", restarted: name == "restarted"}
		shown(t, ctx, f.alloc, j, "secrets/color", 1)
		if f.restarted {
			put(t, s, j, map[string]any{"color": "blue"})
			shown(t, ctx, f.alloc, j, "secrets/color", 2)
		}
		all = append(all, f)
	}
	return all
}

// ends checks that Nomad does not let it run under the built-in driver, and that nobody takes back what it had.
func (f *forgotten) ends(t *testing.T, ctx context.Context, s *stack.Stack) {
	t.Helper()
	refusesOurBlocks(t, ctx, f.alloc)
	if f.renewed {
		eventually(t, 15*time.Second+slack, func() error { return unrevoked(t, ctx, s, f.job.Name) })
	} else {
		must.Len(t, 1, tokensOf(t, s, f.job.Name))
	}
	eventually(t, slack, func() error {
		running, lost := applications(f.alloc), f.restarted && f.job.Docker() // The container: nobody knows of it.
		if len(running) > 0 != lost {
			return fmt.Errorf("%d processes run", len(running))
		}
		return nil
	})
	for _, left := range []string{f.alloc.Path(f.job.Name, "secrets/db.env"), filepath.Join(s.Dir, "state", f.job.Driver,
		f.alloc.ID+"."+f.job.Name+".json")} {
		must.FileExists(t, left)
	}
}

// refusesOurBlocks waits until Nomad has ended the only task of a job, since the driver that it has now does not know
// our blocks. Nomad reads config by the driver's schema also where the task runs already
// (client/allocrunner/taskrunner/task_runner.go, runDriver).
func refusesOurBlocks(t *testing.T, ctx context.Context, alloc *stack.Alloc) {
	t.Helper()
	ended, err := alloc.Ended(ctx)
	must.NoError(t, err)
	must.Eq(t, "failed", ended.ClientStatus)
	_, err = alloc.Event(ctx, ended.TaskGroup, `No argument or block type is named "vault"`)
	must.NoError(t, err)
}

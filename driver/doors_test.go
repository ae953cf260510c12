package driver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// doorkeeperOfTests has the doors of a node, which outlive the plugin.
type doorkeeperOfTests struct {
	refuses error // what Open fails with
	open    map[string]*doorOfTests
	status  process.Status // but for Doors
}

type doorOfTests struct {
	spec   door.Spec
	listen process.Listen
	asks   process.Source
	close  func()

	mu   sync.Mutex
	used []door.Credential // in their order; one that is confirmed stands there once
}

func (k *doorkeeperOfTests) Open(_ context.Context, r process.Request) (servedDoor, error) {
	if k.refuses != nil {
		return nil, k.refuses
	}
	d, kept := k.open[r.Spec.ID]
	if !kept {
		d = &doorOfTests{spec: r.Spec, listen: r.Listen, close: func() { delete(k.open, r.Spec.ID) }}
		k.open[r.Spec.ID] = d
	}
	d.asks = r.Source
	return d, nil
}

func (d *doorOfTests) Generation() uint64 {
	if len(d.uses()) == 0 {
		return 0
	}
	return d.last().Generation
}

func (d *doorOfTests) Use(c *door.Credential) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.used); n > 0 && d.used[n-1].Generation == c.Generation {
		d.used[n-1] = *c
		return
	}
	d.used = append(d.used, *c)
}

func (d *doorOfTests) Close(context.Context) { d.close() }

func (d *doorOfTests) uses() []door.Credential {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.used)
}

func (d *doorOfTests) last() door.Credential { return d.uses()[len(d.uses())-1] }

// keeps gives the host doors, and the task an identity that no process of it can read.
func (h *host) keeps() *doorkeeperOfTests {
	must.NoError(h, os.MkdirAll(filepath.Join(h.alloc, "web/private"), 0o755))
	h.JWT = jwtFor("vault.io")
	h.put("web/private/vault.jwt", h.JWT)
	must.NoError(h, os.Remove(filepath.Join(h.alloc, "web/secrets/nomad_vault.jwt")))
	k := &doorkeeperOfTests{open: map[string]*doorOfTests{}}
	h.Driver.doors = k
	return k
}

// doorHCL is a task with one door, whose credential has the texts.
func doorHCL(text string) string {
	return "vault {\n role = \"app\"\n identity_file = \"private/vault.jwt\"\n}\n" +
		"door \"shop\" {\n url = \"https://api.example.com\"\n poll_interval = \"20s\"\n" +
		"bearer = <<EOT\n" + text + "\nEOT\n}\n"
}

func (k *doorkeeperOfTests) only(h *host) *doorOfTests {
	must.MapLen(h, 1, k.open)
	return k.open[slices.Collect(maps.Keys(k.open))[0]]
}

func TestDoorHasItsCredentialBeforeTheProcessStarts(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		api := k.only(h)
		must.Eq(t, "Bearer green", api.last().Header["Authorization"])
		must.Eq(t, "web/secrets/shop.sock", api.listen.Socket.Name)
		must.Eq(t, "https://api.example.com", api.spec.HTTP.URL)
		must.StrNotContains(t, h.log.String(), "green")
		r.stop()
		must.MapEmpty(t, k.open)
	})
}

func TestDoorFollowsAChangeWithoutTheTask(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		before := r.process()
		h.write("blue")
		after(time.Minute)
		api := k.only(h)
		must.Eq(t, "Bearer blue", api.last().Header["Authorization"])
		must.Len(t, 2, api.uses())
		must.Greater(t, api.uses()[0].Generation, api.uses()[1].Generation)
		must.Eq(t, before, r.process())
		must.SliceEmpty(t, r.did())
		must.Eq(t, []string{`Secrets changed: door "shop"; used from the next call on`}, h.events())
		r.stop()
	})
}

// TestLeaseOfADoorIsRevokedAfterItsLastCall: a call in flight may take longer than any grace.
func TestLeaseOfADoorIsRevokedAfterItsLastCall(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.SetRole("app", vaulttest.Role{TTL: time.Hour, Revoke: true})
		h.Creds["app"] = vaulttest.Creds{TTL: time.Hour, MaxTTL: time.Hour}
		r := h.start(doorHCL(creds))
		first := only(t, h.Users())
		api := k.only(h)
		for len(api.uses()) == 1 {
			after(time.Minute)
		}
		after(time.Minute)
		must.SliceContains(t, h.Users(), first)
		api.asks.Unused(api.uses()[0].Generation)
		after(time.Second)
		must.SliceNotContains(t, h.Users(), first)
		r.stop()
	})
}

func TestDoorWhoseCredentialIsRefusedHasItReadAnew(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		api := k.only(h)
		after(time.Second)
		h.write("blue")
		must.NoError(t, api.asks.Reread(h.Context(), api.last().Generation))
		must.Eq(t, "Bearer blue", api.last().Header["Authorization"])
		asked := h.Calls("")
		must.NoError(t, api.asks.Reread(h.Context(), api.uses()[0].Generation), must.Sprint("it has a newer one already"))
		must.ErrorIs(t, api.asks.Reread(h.Context(), api.last().Generation), errNothingNewer)
		must.Eq(t, asked, h.Calls(""), must.Sprint("a door may not have Vault asked again and again"))
		after(rereadEvery)
		must.ErrorIs(t, api.asks.Reread(h.Context(), api.last().Generation), errNothingNewer)
		must.Greater(t, asked, h.Calls(""))
		r.stop()
	})
}

// TestDoorThatAsksWhileIsReadAnewGetsWhatIsRead: another call of it was refused a moment before.
func TestDoorThatAsksWhileIsReadAnewGetsWhatIsRead(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		api := k.only(h)
		h.write("blue")
		h.Break(vaulttest.Fault{Match: "GET secret/", Slow: 3 * time.Second})
		first := make(chan error, 1)
		generation := api.last().Generation
		go func() { first <- api.asks.Reread(h.Context(), generation) }()
		after(time.Second)
		must.Eq(t, generation, api.last().Generation)
		must.NoError(t, api.asks.Reread(h.Context(), generation))
		must.NoError(t, <-first)
		must.Eq(t, "Bearer blue", api.last().Header["Authorization"])
		r.stop()
	})
}

// TestDoorIsTakenOverWithItsGeneration: calls in flight use it, and nothing is to be revoked.
func TestDoorIsTakenOverWithItsGeneration(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		r := h.start(doorHCL(creds))
		before := k.only(h).last()
		h.crash()
		must.MapLen(t, 1, k.open)
		h.boot()
		h.Driver.doors = k
		r.recovered()
		after(time.Minute)
		api := k.only(h)
		must.Len(t, 1, api.uses())
		must.Eq(t, before.Generation, api.last().Generation)
		must.Eq(t, before.Header, api.last().Header)
		must.Len(t, 1, h.Users())
		r.stop()
	})
}

// A door refuses calls when its credential has been of unknown worth for the time that the option stale says.
// TestTaskIsRecoveredWhereNoDoorCanBe: it goes on without its doors, each of which is told.
func TestTaskIsRecoveredWhereNoDoorCanBe(t *testing.T) {
	bubble(t, func(h *host) {
		h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv) + "door \"vault\" {\n vault = \"default\"\n}\n")
		h.reboot()
		h.Driver.doors = nil
		r.recovered()
		must.SliceNotEmpty(t, h.machine.running())
		must.Eq(t, 2, h.logged("until its state_dir can be used"))
		r.stop()
	})
}

func TestDoorIsToldWhileItsCredentialIsCurrent(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		api := k.only(h)
		after(10 * time.Minute)
		must.Less(t, time.Minute, time.Since(api.last().ReadAt))
		h.Down(true)
		after(10 * time.Minute)
		must.Greater(t, 8*time.Minute, time.Since(api.last().ReadAt))
		h.Down(false)
		after(5 * time.Minute)
		must.Less(t, time.Minute, time.Since(api.last().ReadAt))
		must.Len(t, 1, api.uses())
		r.stop()
	})
}

func TestTaskIsNotStartedWithoutItsDoor(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		k.refuses = errors.New("no process")
		must.ErrorContains(t, h.refused(doorHCL(kv)), `door "shop": no process`)
		h.Driver.doors = nil
		must.ErrorContains(t, h.refused(doorHCL(kv)), "until its state_dir can be used")
		synctest.Wait()
		must.SliceEmpty(t, h.machine.running())
	})
}

// TestDoorNeedsATaskThatCannotLogIn: a task that can needs no door to read the credential.
func TestDoorNeedsATaskThatCannotLogIn(t *testing.T) {
	for says, show := range map[string]func(*host, *drivers.TaskConfig){
		`read secrets/nomad_vault.jwt, an identity for "vault.io" as well`: func(h *host, _ *drivers.TaskConfig) {
			h.identity(jwtFor("vault.io"))
		},
		"the task can read the variable NOMAD_TOKEN_x": func(_ *host, cfg *drivers.TaskConfig) {
			cfg.Env["NOMAD_TOKEN_x"] = jwtFor("other.io", "vault.io")
		},
		"secrets/nomad_x.jwt, an identity without aud": func(h *host, _ *drivers.TaskConfig) {
			h.put("web/private/vault.jwt", jwtFor())
			h.put("web/secrets/nomad_x.jwt", jwtFor())
		},
		"use vault-exec or vault-docker": func(h *host, _ *drivers.TaskConfig) { h.inner.isolation = fsisolation.None },
	} {
		bubble(t, func(h *host) {
			h.keeps()
			h.write("green")
			cfg := h.job(doorHCL(kv))
			show(h, cfg)
			_, _, err := h.StartTask(cfg)
			must.ErrorContains(t, err, says)
			h.nothingLeft()
		})
	}
	bubble(t, func(h *host) {
		h.keeps()
		h.write("green")
		h.identity(jwtFor("nomadproject.io"))
		r := h.start(doorHCL(kv))
		must.SliceContainsFunc(t, h.inner.logs.Mounts, "/private",
			func(m *drivers.MountConfig, path string) bool { return m.TaskPath == path && m.Readonly })
		r.stop()
	})
}

// jwtFor has the form of a workload identity for those audiences.
func jwtFor(audience ...string) string {
	claims, _ := json.Marshal(map[string]any{"sub": "one", "aud": audience})
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"EdDSA"}`)) + "." + part(claims) + "." + part(bytes.Repeat([]byte(vaulttest.Planted), 10))
}

func TestCredentialOfADoorIsOneLine(t *testing.T) {
	for says, text := range map[string]string{
		"bearer is empty: the door would call": `{{ if false }}x{{ end }}`,
		"bearer has several lines":             `a{{ "\n" }}b`,
	} {
		bubble(t, func(h *host) {
			h.keeps()
			h.write("green")
			must.ErrorContains(t, h.refused(doorHCL(text)), `door "shop": `+says)
		})
	}
}

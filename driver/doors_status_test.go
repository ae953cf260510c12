package driver

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/process"
	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/driver/vault/vaulttest"
)

// Status has what the process would say of each door, and counts its uses as calls.
func (k *doorkeeperOfTests) Status(context.Context) process.Status {
	s := k.status
	s.Doors = map[string]process.DoorStatus{}
	for id, d := range k.open {
		one := process.DoorStatus{Generation: d.Generation(), Counters: door.Counters{Calls: int64(len(d.uses())),
			Connections: 1, InFlight: 2, Refused: 3, Failed: 4, Sent: 5, Received: 6}}
		if one.Generation == 0 {
			one.Refuses = "it has no credential"
		}
		s.Doors[id] = one
	}
	return s
}

// doorStatus is what status has of the only door.
func (h *host) doorStatus() status.Door {
	h.Helper()
	return only(h.T, h.taskStatus().Doors)
}

func TestStatusOfADoor(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		must.Zero(t, h.Status().Doors.Open)
		k.status = process.Status{PID: 7, Age: time.Hour, Memory: 8 << 20, Unclaimed: []string{"other/web/api"}}
		h.write("green")
		began := time.Now()
		r := h.start(doorHCL(kv))
		after(10 * time.Second)
		must.Eq(t, &status.Doors{PID: 7, Since: status.Time(time.Now().Add(-time.Hour)), Memory: 8 << 20, Open: 1,
			Unclaimed: []string{"other/web/api"}}, h.Status().Doors)
		got := h.doorStatus()
		must.Between(t, 0, got.Since.Sub(status.Time(began)), 10*time.Second)
		must.Eq(t, k.only(h).last().Generation, got.Generation)
		got.Since, got.Generation = time.Time{}, 0
		must.Eq(t, status.Door{Name: "shop", Kind: "api", Upstream: "https://api.example.com", Connections: 1, Calls: 1,
			InFlight: 2, Refused: 3, Failed: 4, Sent: 5, Received: 6}, got)
		must.SliceEmpty(t, h.taskStatus().Trouble)
		r.stop()
		must.SliceEmpty(t, h.Status().Tasks)
	})
}

// What has the process need a person is told of the plugin, and what has a door, of its task.
func TestStatusOfDoorsInTrouble(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		r := h.start(doorHCL(kv))
		must.StrContains(t, h.Status().Doors.Trouble, "no process serves the doors")
		k.status = process.Status{PID: 7, Silent: true}
		must.StrContains(t, h.Status().Doors.Trouble, "does not answer within 1s: kill 7")
		k.status = process.Status{PID: 7}
		must.Eq(t, "", h.Status().Doors.Trouble)
		api := k.only(h)
		used := api.used
		api.used = nil
		must.Eq(t, []string{`door "shop" refuses all calls: it has no credential`}, h.taskStatus().Trouble)
		must.True(t, h.doorStatus().Since.IsZero())
		api.used = used
		open := k.open
		k.open = nil
		must.Eq(t, []string{`door "shop" is not open: the task's log says why`}, h.taskStatus().Trouble)
		k.open = open
		r.stop()
	})
}

// The record of a door's calls leads to Vault's audit log: by the token that has read the credential, and its leases.
func TestCredentialOfADoorSaysWhereItIsFrom(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		r := h.start(doorHCL(creds) + "door \"vault\" {\n vault = \"default\"\n}\n")
		session := only(t, h.taskStatus().Sessions)
		must.NotEq(t, "", session.Accessor)
		key := "alloc-1/web/"
		api, vault := k.open[key+"shop"].last(), k.open[key+"vault"].last()
		must.Eq(t, session.Accessor, api.Accessor)
		must.Eq(t, session.Accessor, vault.Accessor)
		must.StrHasPrefix(t, "database/creds/app/", only(t, api.Leases))
		must.SliceEmpty(t, vault.Leases)
		r.stop()
	})
}

// A new token that reads the same is no new credential: sessions with a database would be ended for nothing.
func TestANewTokenIsNoNewCredential(t *testing.T) {
	bubble(t, func(h *host) {
		k := h.keeps()
		h.write("green")
		h.SetRole("app", vaulttest.Role{TTL: 10 * time.Minute, MaxTTL: 10 * time.Minute})
		r := h.start(doorHCL(kv))
		first := only(t, h.taskStatus().Sessions).Accessor
		after(time.Hour)
		must.NotEq(t, first, only(t, h.taskStatus().Sessions).Accessor)
		must.Len(t, 1, k.only(h).uses())
		r.stop()
	})
}

func TestStatusOfDoorsHasNoSecret(t *testing.T) {
	bubble(t, func(h *host) {
		h.keeps()
		h.write(vaulttest.Planted)
		r := h.start(doorHCL(kv) + "door \"vault\" {\n vault = \"default\"\n}\n" +
			"door \"hook\" {\n url = \"https://hooks.example.com/" + vaulttest.Planted + "\"\n bearer = \"x\"\n}\n" +
			"door \"db\" {\n postgres = \"postgres://db.example.com:5432/app?sslmode=verify-full\"\n" +
			" username = \"u\"\n password = \"" + vaulttest.Planted + "\"\n}\n")
		text, err := json.Marshal(h.Status())
		must.NoError(t, err)
		must.StrNotContains(t, string(text), vaulttest.Planted)
		var upstreams []string
		for _, d := range h.taskStatus().Doors {
			upstreams = append(upstreams, d.Kind+" "+d.Upstream)
		}
		slices.Sort(upstreams)
		must.Eq(t, []string{"api https://api.example.com", "api https://hooks.example.com",
			"postgres db.example.com:5432/app", "vault default"}, upstreams)
		r.stop()
	})
}

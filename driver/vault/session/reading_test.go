package session_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/driver/vault/vaulttest"
)

func TestReadersOfOneReadingAskOnce(t *testing.T) {
	bubble(t, func(b *bench) {
		var reqs []vault.Request
		for i := range 5 {
			path := fmt.Sprintf("secret/%d", i)
			b.Put(path, map[string]any{"k": "1"})
			reqs = append(reqs, read(path))
		}
		s := b.open()
		mend := b.Break(vaulttest.Fault{Match: "GET secret/", Status: 503})
		time.AfterFunc(10*time.Second, mend)
		r := s.Begin(false)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for _, req := range reqs {
					b.answer(r, req)
				}
			})
		}
		all.Wait()
		r.Commit(0)
		failed := b.Calls("GET secret/data/0") - 1
		must.Between(b, 3, failed, 30)
		for i := 1; i < 5; i++ {
			must.Eq(b, 1, b.Calls(fmt.Sprintf("GET secret/data/%d", i)))
		}
		b.end(s)
	})
}

func TestReaderCanGiveUpWaitingForAnother(t *testing.T) {
	bubble(t, func(b *bench) {
		s := b.open()
		b.Break(vaulttest.Fault{Match: "GET database/", Hang: true})
		r := s.Begin(false)
		var slow sync.WaitGroup
		slow.Go(func() { _, _ = r.Read(b.Context(), creds) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		_, err := r.Read(ctx, creds)
		must.ErrorIs(b, err, context.DeadlineExceeded)
		must.NoError(b, s.Close(b.Context()))
		slow.Wait()
	})
}

func TestFreshReading(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Put("secret/a", map[string]any{"k": "1"})
		s := b.open()
		b.generation(s, 0, creds, read("secret/a"))
		b.Put("secret/a", map[string]any{"k": "2"})
		r := s.Begin(true)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))))
		b.answer(r, creds)
		must.Eq(b, 1, b.Minted(), must.Sprint("a start anew costs no credentials"))
		r.Commit(0)
		must.False(b, changed(s))
		b.Down(true)
		r = s.Begin(true)
		must.Eq(b, "2", value(b.answer(r, read("secret/a"))), must.Sprint("the last known good"))
		b.Down(false)
		b.end(s)
	})
}

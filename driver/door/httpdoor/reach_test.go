package httpdoor

import (
	"crypto/tls"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

// TestReach has the errors that a call through the door would meet, and makes none.
func TestReach(t *testing.T) {
	var calls atomic.Int64
	count := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	plain, secure, mutual := httptest.NewServer(count), httptest.NewTLSServer(count), httptest.NewUnstartedServer(count)
	gone := httptest.NewServer(count)
	gone.Close()
	mutual.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}
	mutual.StartTLS()
	trusted := func(s *httptest.Server) func(*door.Spec) {
		return func(spec *door.Spec) {
			spec.HTTP.CAs = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
		}
	}
	for sentence, c := range map[string]struct {
		to     *httptest.Server
		change func(*door.Spec)
		says   string // "": it is reached
	}{
		"plain":                     {to: plain},
		"with TLS":                  {to: secure, change: trusted(secure)},
		"that wants a certificate":  {to: mutual, change: trusted(mutual)},
		"of an authority not known": {to: secure, says: "certificate signed by unknown authority"},
		"that has gone":             {to: gone, says: "connection refused"},
		"that is not allowed": {to: plain, change: func(s *door.Spec) { s.Dial = door.Dial{} },
			says: "the operator must write allow_cidrs"},
		"by a certificate that is none": {to: plain, change: func(s *door.Spec) { s.HTTP.CAs = []byte("x") },
			says: "ca_pem: there is no certificate in it"},
	} {
		spec := specOf(c.to.URL)
		if c.change != nil {
			c.change(&spec)
		}
		err := Reach(t.Context(), spec)
		if c.says == "" {
			must.NoError(t, err, must.Sprint(sentence))
			continue
		}
		must.ErrorContains(t, err, c.says, must.Sprint(sentence))
	}
	for _, s := range []*httptest.Server{plain, secure, mutual} {
		s.Close()
	}
	must.Zero(t, calls.Load())
}

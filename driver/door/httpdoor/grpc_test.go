package httpdoor

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"nomad-driver-vault/driver/door"
)

// interop are cases of gRPC's interoperability tests: calls of all four kinds, metadata, statuses and cancellation.
// https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
var interop = []string{"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong",
	"empty_stream", "timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	"status_code_and_message", "special_status_message", "custom_metadata", "unimplemented_method",
	"unimplemented_service"}

// TestGRPC has gRPC's own client and server on both sides of a door.
func TestGRPC(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		address, ca := grpcServer(t, scheme)
		b := openTo(t, scheme+"://"+address, func(s *door.Spec) { s.HTTP.CAs = ca })
		for _, name := range interop {
			t.Run(scheme+"/"+name, func(t *testing.T) {
				out, err := exec.Command(tool(t, "grpc-interop-client"), "-server_host=unix:"+b.socket, "-server_port=0",
					"-use_tls=false", "-test_case="+name).CombinedOutput()
				must.NoError(t, err, must.Sprint(string(out)))
			})
		}
		line := b.last(len(interop))
		must.StrHasPrefix(t, "/grpc.testing.", line.Path)
		must.Eq(t, "", line.Refused)
	}
}

// grpcServer starts gRPC's test server, and returns its address and what its certificate is verified with.
func grpcServer(t *testing.T, scheme string) (address string, ca []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	must.NoError(t, l.Close())
	args := []string{"-port=" + portOf(l.Addr())}
	if scheme == "https" {
		dir := t.TempDir()
		any := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
		pair := any.TLS.Certificates[0]
		any.Close()
		key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		must.NoError(t, err)
		ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
		for name, text := range map[string][]byte{"cert": ca,
			"key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
			must.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
			args = append(args, fmt.Sprintf("-tls_%s_file=%s", name, filepath.Join(dir, name)))
		}
		args = append(args, "-use_tls")
	}
	cmd := exec.Command(tool(t, "grpc-interop-server"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	must.Wait(t, wait.InitialSuccess(wait.ErrorFunc(func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		return err
	}), wait.Timeout(30*time.Second), wait.Gap(10*time.Millisecond)))
	return l.Addr().String(), ca
}

// TestMessagesOfGRPCThatAreCompressed cannot be looked into, as a body that is compressed cannot.
func TestMessagesOfGRPCThatAreCompressed(t *testing.T) {
	upstream := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["Grpc-Encoding"] = r.URL.Query()["encoding"]
		fmt.Fprint(rw, r.Header.Get("Grpc-Accept-Encoding"))
	})
	for _, c := range []struct {
		scrub    door.Scrub
		query    string
		status   int
		accepted string
	}{
		{door.ScrubFull, "encoding=gzip", 502, ""},
		{door.ScrubFull, "encoding=identity&encoding=gzip", 502, ""},
		{door.ScrubFull, "encoding=identity", 200, "identity"},
		{door.ScrubHeaders, "encoding=gzip", 200, "gzip"},
	} {
		b := openTLS(t, upstream, func(s *door.Spec) { s.HTTP.Scrub = c.scrub })
		r := b.request("POST", "/?"+c.query, strings.NewReader("\x00\x00\x00\x00\x00"))
		r.Header.Set("Grpc-Accept-Encoding", "gzip")
		a := b.do(b.h2, r)
		must.Eq(t, c.status, a.StatusCode)
		must.True(t, a.byDoor() || a.body == c.accepted)
	}
}

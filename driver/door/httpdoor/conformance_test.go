package httpdoor

import (
	"encoding/xml"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/internal/need"
)

// tool returns a program of the repository's bin folder.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../../bin", name))
	must.NoError(t, err)
	if _, err := os.Stat(path); err != nil {
		need.Skip(t, "bin/"+name+": make tools builds it")
	}
	return path
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// notHTTP2 are the cases of h2spec that fail at net/http itself.
var notHTTP2 = []string{
	"Sends invalid connection preface",                                          // is taken for HTTP/1, and answered
	"Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE", // 1 MiB are permitted
	"Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE",                     // what comes twice is refused

	// The answer is 400, not the end of the stream.
	"Sends a HEADERS frame that contains the connection-specific header field",
	`Sends a HEADERS frame that contains the TE header field with any value other than "trailers"`,
}

// TestH2spec runs the cases of h2spec for HTTP/2 and HPACK at a door, and at net/http without one.
func TestH2spec(t *testing.T) {
	b := open(t, http.HandlerFunc(echo))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	plain := &http.Server{Handler: http.HandlerFunc(echo), Protocols: b.door.(*httpDoor).server.Protocols}
	go plain.Serve(l)
	t.Cleanup(func() { _ = plain.Close() })
	for name, port := range map[string]string{"door": portOf(b.listen("tcp", "127.0.0.1:0")),
		"net/http": portOf(l.Addr())} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, failed := h2spec(t, port)
			must.Eq(t, 145, all)
			must.SliceContainsAll(t, notHTTP2, failed)
		})
	}
}

// h2spec returns how many cases there were, and those that have failed.
func h2spec(t *testing.T, port string) (all int, failed []string) {
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(tool(t, "h2spec"), "-h", "127.0.0.1", "-p", port, "-o", "2", "-j", report).CombinedOutput()
	text, notRun := os.ReadFile(report)
	must.NoError(t, notRun, must.Sprint(err, string(out)))
	t.Log(string(out)) // seen if a case fails that should not
	var r struct {
		Suites []struct {
			Cases []struct {
				Name  string    `xml:"classname,attr"`
				Error *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	must.NoError(t, xml.Unmarshal(text, &r))
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			all++
			if c.Error != nil {
				failed = append(failed, c.Name)
			}
		}
	}
	return all, failed
}

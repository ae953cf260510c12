package httpdoor

import (
	"encoding/xml"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// notHTTP2 are the cases of h2spec that fail at net/http itself, and what it does.
var notHTTP2 = map[string]string{
	"Sends invalid connection preface":                                                             "takes it for HTTP/1, and answers",
	"Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE":                    "permits frames of 1 MiB",
	"Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE":                                        "refuses a setting that comes twice",
	"Sends a HEADERS frame that contains the connection-specific header field":                     "answers 400",
	`Sends a HEADERS frame that contains the TE header field with any value other than "trailers"`: "answers 400",
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
			must.SliceContainsAll(t, slices.Collect(maps.Keys(notHTTP2)), failed)
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

package taskapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-vault/internal/need"
)

func TestWhatIsAskedAndAnswered(t *testing.T) {
	type result struct {
		answer any
		err    error
	}
	services := func(region string) func(context.Context, *Reading) result {
		return func(ctx context.Context, r *Reading) result { a, err := r.Services(ctx, region); return result{a, err} }
	}
	service := func(q ServiceQuery) func(context.Context, *Reading) result {
		return func(ctx context.Context, r *Reading) result { a, err := r.Service(ctx, q); return result{a, err} }
	}
	variable := func(q VariableQuery) func(context.Context, *Reading) result {
		return func(ctx context.Context, r *Reading) result { a, err := r.Variable(ctx, q); return result{a, err} }
	}
	variables := func(q VariableQuery) func(context.Context, *Reading) result {
		return func(ctx context.Context, r *Reading) result { a, err := r.Variables(ctx, q); return result{a, err} }
	}
	const (
		nodeJSON = `"Namespace":"ns","NodeID":"n1","Datacenter":"dc1","JobID":"pg","AllocID":"a1","CreateIndex":1,"ModifyIndex":2`
		metaJSON = `"Namespace":"ns","Path":"nomad/jobs/api","CreateIndex":3,"ModifyIndex":4,"CreateTime":5,"ModifyTime":6`
	)
	instance := &api.ServiceRegistration{
		ID: "i1", ServiceName: "db", Namespace: "ns", NodeID: "n1", Datacenter: "dc1", JobID: "pg", AllocID: "a1",
		Address: "10.0.0.1", Port: 5432, Tags: []string{"a", "primary"},
		CreateIndex: 1, ModifyIndex: 2,
	}
	meta := &api.VariableMetadata{Namespace: "ns", Path: "nomad/jobs/api", CreateIndex: 3, ModifyIndex: 4, CreateTime: 5,
		ModifyTime: 6}
	instances := `[{"ID":"i1","ServiceName":"db",` + nodeJSON +
		`,"Address":"10.0.0.1","Port":5432,"Tags":["primary","a"]},` +
		`{"ID":"i0","ServiceName":"db","Tags":["replica"]}]`
	cases := map[string]struct {
		ask  func(context.Context, *Reading) result
		url  string
		body string
		want any
	}{
		"the services of the namespace, sorted": {
			services(""), "/v1/services?namespace=ns",
			`[{"Namespace":"ns","Services":[{"ServiceName":"web","Tags":["b","a"]},{"ServiceName":"db","Tags":null}]}]`,
			[]*api.ServiceRegistrationStub{{ServiceName: "db"}, {ServiceName: "web", Tags: []string{"a", "b"}}},
		},
		"no services": {services(""), "/v1/services?namespace=ns", `[]`, []*api.ServiceRegistrationStub{}},
		"the services of another region": {
			services("eu"), "/v1/services?namespace=ns&region=eu", `[]`, []*api.ServiceRegistrationStub{},
		},
		"a service, in Nomad's order": {
			service(ServiceQuery{Name: "db"}), "/v1/service/db?namespace=ns", instances,
			[]*api.ServiceRegistration{instance, {ID: "i0", ServiceName: "db", Tags: []string{"replica"}}},
		},
		"a service that is not there": {service(ServiceQuery{Name: "db"}), "/v1/service/db?namespace=ns", `[]`, []*api.ServiceRegistration{}},
		"some instances, chosen by Nomad": {
			service(ServiceQuery{Name: "db", Choose: "2|k|1"}), "/v1/service/db?choose=2%7Ck%7C1&namespace=ns", `[]`, []*api.ServiceRegistration{},
		},
		"a variable": {
			variable(VariableQuery{Path: "/nomad/jobs/api/"}), "/v1/var/nomad/jobs/api?namespace=ns", `{` + metaJSON +
				`,"Items":{"k":"v"}}`,
			&api.Variable{Namespace: "ns", Path: "nomad/jobs/api", CreateIndex: 3, ModifyIndex: 4, CreateTime: 5, ModifyTime: 6,
				Items: api.VariableItems{"k": "v"}},
		},
		"a variable elsewhere": {
			variable(VariableQuery{Path: "a", Namespace: "other",
				Region: "eu"}), "/v1/var/a?namespace=other&region=eu", `{}`, &api.Variable{},
		},
		"a path that would be a query": {
			variable(VariableQuery{Path: "a?namespace=x#%2e"}), "/v1/var/a?namespace=x#%2e?namespace=ns", `{}`, &api.Variable{},
		},
		"variables below a prefix": {
			variables(VariableQuery{Path: "nomad/jobs"}), "/v1/vars?namespace=ns&prefix=nomad%2Fjobs", `[{` + metaJSON +
				`}]`, []*api.VariableMetadata{meta},
		},
		"all variables of all namespaces": {variables(VariableQuery{Namespace: "*"}), "/v1/vars?namespace=%2A", `[]`,
			[]*api.VariableMetadata{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *nomad, w *Watch) {
				n.set(c.url, 0, c.body)
				got := c.ask(t.Context(), w.Begin())
				must.NoError(t, got.err)
				must.Eq(t, c.want, got.answer)
				must.Eq(t, "the-token", n.requests(c.url)[0].token)
			})
		})
	}
}

// What Nomad, or whoever has taken its place on the socket, may send instead of an answer.
func TestWhatIsNoAnswer(t *testing.T) {
	list := variablesQuery{Path: "app/"}
	cases := map[string]struct {
		raw   string
		class error
		says  string
	}{
		"no token": {http1(401, "Unauthorized", 0), ErrDenied,
			"add to the task: identity { file = true } or identity { env = true }"},
		"no policy": {
			http1(403, "Permission denied", 0), ErrDenied,
			`with: namespace "ns" { variables { path "app/*" { capabilities = ["list"] } } }`,
		},
		"a token that is over": {http1(403, "Forbidden", 0), ErrDenied,
			`does not accept the task's identity token, which may have expired: "Forbidden" (403)`},
		"a question Nomad refuses": {http1(400, "bad\nthing", 0), ErrInvalid, `"bad thing" (400)`},
		"a redirect":               {http1(307, "", 0), ErrInvalid, "(307)"},
		"a path nobody knows":      {http1(404, "404 page not found", 0), ErrInvalid, "(404)"},
		"trouble at the servers":   {http1(500, "No cluster leader", 0), ErrUnavailable, `"No cluster leader" (500)`},
		"too many requests":        {http1(429, "", 0), ErrUnavailable, "(429)"},
		"the token sent back":      {http1(500, "you said the-token", 0), ErrUnavailable, `"you said [redacted]"`},
		"an endless message":       {http1(500, strings.Repeat("x", 5000), 0), ErrUnavailable, "xxx...\" (500)"},
		"what is not JSON":         {http1(200, "the-token", 0), ErrUnavailable, "sent no JSON of Nomad's"},
		"JSON of another shape":    {http1(200, `{"the-token":1}`, 0), ErrUnavailable, "sent no JSON of Nomad's"},
		"what is not HTTP":         {"the-token\r\n\r\n", ErrUnavailable, "does not speak HTTP"},
		"a part of an answer":      {http1(200, "[]", 0)[:57], ErrUnavailable, "closed before the answer"},
		"an answer without end": {"HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", answerLimit+1), ErrUnavailable,
			"larger than 8388608 bytes"},
		"headers without end": {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", answerLimit+1), ErrUnavailable,
			"closed before the answer"},
		"nothing": {"", ErrUnavailable, "closed before the answer"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNomad()
				n.raw = []byte(c.raw)
				w, _ := n.watch(t)
				_, _, err := w.api.get(t.Context(), list, 0)
				must.ErrorIs(t, err, c.class)
				must.StrContains(t, err.Error(), c.says)
				must.StrNotContains(t, err.Error(), "the-token")
				must.Less(t, 600, len(err.Error()))
				must.Eq(t, c.class != ErrUnavailable, final(err), must.Sprint("told at once where waiting cannot help"))
			})
		})
	}
}

func taskDir(t *testing.T, below ...string) string {
	t.Helper()
	dir := filepath.Join(append([]string{t.TempDir()}, below...)...)
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "secrets"), 0o755))
	return dir
}

// listen serves the fake at secrets/api.sock in dir, however long that path is.
func listen(t *testing.T, dir string) *nomad {
	t.Helper()
	at, err := os.Open(filepath.Join(dir, "secrets"))
	must.NoError(t, err)
	defer at.Close()
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/api.sock", at.Fd()))
	must.NoError(t, err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	n := newNomad()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go n.serve(conn)
		}
	}()
	t.Cleanup(func() { listener.Close() })
	return n
}

func TestARealSocket(t *testing.T) {
	long := strings.Repeat("a-very-long-task-name", 8)
	cases := map[string]func(t *testing.T) string{
		"an ordinary path":                 func(t *testing.T) string { return taskDir(t) },
		"a path longer than a socket's is": func(t *testing.T) string { return taskDir(t, long) },
	}
	for name, dir := range cases {
		t.Run(name, func(t *testing.T) {
			dir := dir(t)
			n := listen(t, dir)
			w, _ := n.watch(t)
			w.api.dial = dialer(dir)
			defer w.Close()
			n.set(askedDB, 0, dbJSON(1))
			r := w.Begin()
			must.Eq(t, 1, port(t, r))
			r.Commit()
			n.set(askedDB, 0, dbJSON(2))
			<-w.changed
			must.Eq(t, 2, port(t, w.Begin()))
		})
	}
}

// The plugin is root and the task can write where the socket is.
func TestWhatIsNotNomadsSocket(t *testing.T) {
	cases := map[string]struct {
		plant func(t *testing.T, dir string)
		says  string
	}{
		"nothing": {func(*testing.T, string) {}, "the task has no secrets/api.sock, which Nomad 1.5 and newer make; the " +
			"agent's log says why"},
		"no directory": {
			func(t *testing.T, dir string) { must.NoError(t, os.RemoveAll(dir)) }, "the task has no secrets/api.sock",
		},
		"a link to another socket of the host": {
			func(t *testing.T, dir string) {
				other := taskDir(t)
				listen(t, other)
				must.NoError(t, os.Symlink(filepath.Join(other, socketName), filepath.Join(dir, socketName)))
			}, "secrets/api.sock is not a socket: the task must leave that file alone",
		},
		"a link to a directory with a socket": {
			func(t *testing.T, dir string) {
				other := taskDir(t)
				listen(t, other)
				must.NoError(t, os.Remove(filepath.Join(dir, "secrets")))
				must.NoError(t, os.Symlink(filepath.Join(other, "secrets"), filepath.Join(dir, "secrets")))
			}, "path escapes from parent",
		},
		"a named pipe": {
			func(t *testing.T, dir string) {
				must.NoError(t, syscall.Mkfifo(filepath.Join(dir, socketName),
					0o600))
			}, "is not a socket",
		},
		"a file": {
			func(t *testing.T, dir string) {
				must.NoError(t, os.WriteFile(filepath.Join(dir, socketName), nil, 0o600))
			}, "is not a socket",
		},
		"a socket of another user": {listenAsNobody, "it is not Nomad that listens on secrets/api.sock"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := taskDir(t)
			c.plant(t, dir)
			_, err := dialer(dir)(t.Context())
			must.ErrorIs(t, err, ErrUnavailable)
			must.StrContains(t, err.Error(), c.says)
			must.StrNotContains(t, err.Error(), dir)
			must.True(t, final(err))
		})
	}
}

func TestASocketThatNomadCouldNotMake(t *testing.T) {
	_, err := dialer(taskDir(t, strings.Repeat("x", 100)))(t.Context())
	must.ErrorIs(t, err, ErrUnavailable)
	must.StrContains(t, err.Error(), "a socket's may have 107: shorten the agent's data_dir")
}

func TestASocketNobodyListensOn(t *testing.T) {
	dir := taskDir(t)
	listener, err := net.Listen("unix", filepath.Join(dir, socketName))
	must.NoError(t, err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	must.NoError(t, listener.Close())
	_, err = dialer(dir)(t.Context())
	must.EqError(t, err, "cannot ask Nomad: ask on secrets/api.sock: connection refused")
	must.False(t, final(err), must.Sprint("an agent that restarts is back soon"))
}

// listenAsNobody makes the socket on a thread that has become user 65534, which then ends with its goroutine.
func listenAsNobody(t *testing.T, dir string) {
	need.Root(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, socketName)}))
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			done <- errno
			return
		}
		done <- unix.Listen(fd, 1)
	}()
	must.NoError(t, <-done)
}

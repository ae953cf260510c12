package httpdoor_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"nomad-driver-vault/driver/door"
	"nomad-driver-vault/driver/door/httpdoor"
)

// keeper is a plugin whose credentials do not change, and who prints the record.
type keeper struct{}

func (keeper) Reread(context.Context, uint64) error { return fmt.Errorf("there is nothing newer") }
func (keeper) Unused(uint64)                        {}
func (keeper) Call(c door.Call)                     { fmt.Println("recorded:", c.Method, c.Path, c.Status) }

// A caller uses an API's key that it does not have. The API repeats the key in its answer; the caller does not see it.
func Example() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "you are %s", r.Header.Get("X-Api-Key"))
	}))
	defer api.Close()
	d, err := httpdoor.New(door.Spec{
		ID: "alloc/task/api", Name: "api", MaxConns: 10, Record: door.Record{Calls: door.RecordAll, Sample: 1},
		HTTP: &door.HTTP{URL: api.URL, Methods: []string{"GET"}, Scrub: door.ScrubFull, Header: []string{"X-Api-Key"}},
		Dial: door.Dial{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}, keeper{})
	if err != nil {
		panic(err)
	}
	d.Use(&door.Credential{Generation: 1, Header: map[string]string{"X-Api-Key": "the-key-of-the-api"}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go d.Serve(listener) //nolint:errcheck // it ends with Close
	defer d.Close(context.Background())

	answer, err := http.Get("http://" + listener.Addr().String() + "/words")
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	fmt.Println(answer.StatusCode, string(body), err)
	refused, err := http.Post("http://"+listener.Addr().String()+"/words", "text/plain", nil)
	if err != nil {
		panic(err)
	}
	refused.Body.Close()
	fmt.Println(refused.StatusCode)
	// Unordered output:
	// recorded: GET /words 200
	// 200 you are ****************** <nil>
	// recorded: POST /words 403
	// 403
}

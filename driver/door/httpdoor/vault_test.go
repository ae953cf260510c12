package httpdoor

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/door"
)

const vaultToken = "hvs.CAESIJdoorstokenthatnotaskmaysee"

// openVault opens a door to an upstream in Vault's place.
func openVault(t *testing.T, upstream http.Handler, change ...func(*door.Vault)) *bench {
	t.Helper()
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	spec := specOf("")
	spec.HTTP, spec.Vault = nil, &door.Vault{Address: server.URL}
	for _, f := range change {
		f(spec.Vault)
	}
	b := serve(t, spec)
	b.door.Use(&door.Credential{Generation: 1, Token: vaultToken, ReadAt: time.Now()})
	return b
}

// sent is an upstream that says in headers with what token and namespace it was asked.
func sent(rw http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("X-Vault-Token")
	if token == vaultToken {
		token = "the door's"
	}
	rw.Header().Set("X-Token", token)
	rw.Header().Set("X-Rest", strings.Join(r.Header["Authorization"], "")+strings.Join(r.Header["X_vault_token"], ""))
	rw.Header().Set("X-Namespace", r.Header.Get("X-Vault-Namespace"))
	fmt.Fprintf(rw, "%s %s", r.Method, r.RequestURI)
}

func TestVaultGetsTheDoorsToken(t *testing.T) {
	b := openVault(t, http.HandlerFunc(sent), func(v *door.Vault) { v.Namespace = "team/app" })
	for _, header := range [][]string{nil, {"X-Vault-Token", "door"}, {"X-Vault-Token", "hvs.mine"}, {"x_vault_token",
		"hvs.mine"},
		{"Authorization", "Bearer hvs.mine"}, {"X-Vault-Namespace", "team/app/"}} {
		a := b.get("/v1/kv/data/app?version=2", header...)
		must.Eq(t, "GET /v1/kv/data/app?version=2", a.body)
		must.Eq(t, "the door's", a.Header.Get("X-Token"))
		must.Eq(t, "", a.Header.Get("X-Rest"))
		must.Eq(t, "team/app", a.Header.Get("X-Namespace"))
	}
	a := b.do(b.client, b.request("LIST", "/v1/kv/metadata/app/", nil))
	must.Eq(t, "LIST /v1/kv/metadata/app/", a.body)
	a = b.do(b.client, b.request("PATCH", "/v1/kv/data/app", strings.NewReader("{}")))
	must.Eq(t, "PATCH /v1/kv/data/app", a.body)
}

func TestClientsOfVaultThatAreRefused(t *testing.T) {
	b := openVault(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Error("reached", r.URL) }))
	const wrap, namespace = "X-Vault-Wrap-Ttl", "X-Vault-Namespace"
	for request, why := range map[string]string{
		"POST /v1/auth/token/create":                      "tokens are not made",
		"POST /v1/auth/token/create/":                     "tokens are not made",
		"POST /v1/auth/token/create-orphan":               "tokens are not made",
		"POST /v1/auth/token/create/role":                 "tokens are not made",
		"POST /v1/auth/token/lookup":                      "tokens are not made",
		"PUT /v1/auth/token/revoke-self":                  "tokens are not made",
		"LIST /v1/auth/token/accessors":                   "tokens are not made",
		"POST /v1/%61uth/token/create":                    "tokens are not made",
		"POST /v1/auth%2ftoken/create":                    "encoded slash",
		"POST /v1/child/auth/token/create":                "tokens are not made", // in a namespace below
		"GET /v1/child/auth/token/lookup-self":            "tokens are not made",
		"GET /v1/auth/token/lookup-self/x":                "tokens are not made",
		"POST /v1/auth/userpass/login/me":                 "does not log in",
		"POST /v1/auth/a/b/login":                         "does not log in",
		"POST /v1/child/auth/jwt/login":                   "does not log in",
		"GET /v1/auth/oidc/oidc/callback":                 "does not log in",
		"GET /v1/auth/token/lookup-self " + wrap:          "not wrapped",
		"POST /v1/auth/token/renew-self " + wrap:          "not wrapped",
		"POST /v1/auth/approle/role/a/secret-id " + wrap:  "not wrapped",
		"GET /v1/child/auth/token/lookup-self " + wrap:    "not wrapped",
		"GET /v1/auth/token/lookup-self X_Vault_Wrap_TTL": "not wrapped",
		"GET /v1/kv/data/app " + namespace:                "namespace is not the door's",
		"GET /ui/":                                        "Vault's API",
		"GET /":                                           "Vault's API",
		"GET /v1":                                         "Vault's API",
		"GET /v1/kv/../auth/token/create":                 "dot segment",
		"GET /v1//auth/token/create":                      "empty segment",
	} {
		fields := strings.Fields(request)
		raw := fields[0] + " " + fields[1] + " HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
		for _, header := range fields[2:] {
			raw += header + ": 60\r\n"
		}
		a := b.raw(raw + "\r\n")
		must.True(t, a.StatusCode == 403 || a.StatusCode == 400, must.Sprint(request, a.StatusCode))
		must.StrContains(t, a.Header.Get(errorHeader), why, must.Sprint(request))
	}
}

func TestWhatAClientOfVaultMay(t *testing.T) {
	b := openVault(t, http.HandlerFunc(sent))
	for _, request := range []string{"GET /v1/auth/token/lookup-self", "PUT /v1/auth/token/renew-self",
		"GET /v1/sys/health",
		"POST /v1/auth/approle/role/a/secret-id", "GET /v1/kv/data/auth", "GET /v1/kv/data/login", "GET /v1/sys/auth",
		"GET /v1/kv/data/auth/app"} {
		method, path, _ := strings.Cut(request, " ")
		a := b.do(b.client, b.request(method, path, nil))
		must.Eq(t, request, a.body)
		must.Eq(t, "the door's", a.Header.Get("X-Token"))
	}
	a := b.get("/v1/kv/data/app", "X-Vault-Wrap-Ttl", "60") // the task could read it too
	must.Eq(t, 200, a.StatusCode)
}

// TestUnwrappingIsDoneWithTheWrappingToken: a client that has no other token sends it as its own.
func TestUnwrappingIsDoneWithTheWrappingToken(t *testing.T) {
	b := openVault(t, http.HandlerFunc(sent))
	for _, path := range []string{"/v1/sys/wrapping/unwrap", "/v1/sys/wrapping/lookup"} {
		must.Eq(t, "hvs.wrapping", b.get(path, "X-Vault-Token", "hvs.wrapping").Header.Get("X-Token"))
		must.Eq(t, "hvs.wrapping", b.get(path, "Authorization", "Bearer hvs.wrapping").Header.Get("X-Token"))
		must.Eq(t, "the door's", b.get(path, "X-Vault-Token", Placeholder).Header.Get("X-Token"))
		must.Eq(t, "the door's", b.get(path).Header.Get("X-Token"))
	}
}

func TestPassthroughSendsTheClientsToken(t *testing.T) {
	b := openVault(t, http.HandlerFunc(sent), func(v *door.Vault) {
		v.Passthrough, v.Paths = true, []string{"kv/*",
			"auth/*"}
	})
	must.Eq(t, "hvs.mine", b.get("/v1/kv/a", "X-Vault-Token", "hvs.mine").Header.Get("X-Token"))
	must.Eq(t, "the door's", b.get("/v1/kv/a", "X-Vault-Token", Placeholder).Header.Get("X-Token"))
	must.Eq(t, "the door's", b.get("/v1/kv/a").Header.Get("X-Token"))
	must.Eq(t, 200, b.get("/v1/auth/token/create", "X-Vault-Token", "hvs.mine").StatusCode)
	must.Eq(t, 403, b.get("/v1/auth/token/create").StatusCode)
	must.Eq(t, 403, b.get("/v1/sys/mounts", "X-Vault-Token", "hvs.mine").StatusCode)
}

func TestPathsNarrowThePolicies(t *testing.T) {
	b := openVault(t, http.HandlerFunc(sent), func(v *door.Vault) {
		v.Paths = []string{"kv/data/app/*",
			"transit/encrypt/app"}
	})
	for path, may := range map[string]bool{"kv/data/app/x": true, "kv/data/app/": true, "transit/encrypt/app": true,
		"auth/token/lookup-self": true, "sys/internal/ui/mounts/kv/data/app": true, "sys/wrapping/unwrap": true,
		"sys/health":  true,
		"kv/data/app": false, "kv/data/other": false, "transit/encrypt/app/x": false, "transit/decrypt/app": false,
		"sys/mounts": false, "auth/token/lookup-self/x": false, "v1/kv/data/app/x": false} {
		must.Eq(t, may, b.get("/v1/"+path).StatusCode == 200, must.Sprint(path))
	}
	must.Eq(t, 200, b.get("/v1/kv/data/app?list=true").StatusCode) // what is below it
	must.Eq(t, 200, b.do(b.client, b.request("LIST", "/v1/kv/data/app", nil)).StatusCode)
	must.Eq(t, 403, b.get("/v1/kv/data/app?list=false&list=true").StatusCode)
}

// TestAStandbySendsTheDoorToTheActiveNode: the task could not reach it, and would send no token there.
func TestAStandbySendsTheDoorToTheActiveNode(t *testing.T) {
	active := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(active.Close)
	to := active.URL
	b := openVault(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		location := to
		if !strings.HasSuffix(to, "/elsewhere") {
			location += r.RequestURI
		}
		rw.Header().Set("Location", location)
		rw.WriteHeader(http.StatusTemporaryRedirect)
	}))
	a := b.do(b.client, b.request("PUT", "/v1/kv/data/app?x=1", strings.NewReader("hello")))
	must.Eq(t, 200, a.StatusCode)
	must.StrHasPrefix(t, "PUT /v1/kv/data/app?x=1\n", a.body)
	must.StrContains(t, a.body, "X-Vault-Token: "+strings.Repeat("*", len(vaultToken)))
	must.StrHasSuffix(t, "\n\nhello", a.body)

	big := strings.NewReader(strings.Repeat("x", 2*maxReplay)) // cannot be sent again
	must.Eq(t, 307, b.do(b.client, b.request("PUT", "/v1/kv/data/app", big)).StatusCode)
	for _, elsewhere := range []string{active.URL + "/elsewhere",
		"http://user:pass@" + active.Listener.Addr().String(), "ftp://a"} {
		to = elsewhere
		must.Eq(t, 307, b.get("/v1/kv/data/app").StatusCode, must.Sprint(elsewhere))
	}
}

func TestATokenThatVaultDoesNotKnowIsReadAgain(t *testing.T) {
	for errors, again := range map[string]bool{`["permission denied","invalid token"]`: true, `["bad token"]`: true,
		`["1 error occurred:\n\t* permission denied\n\n"]`: false} {
		b := openVault(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Vault-Token") == vaultToken {
				rw.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(rw, `{"errors":%s}`, errors)
			}
		}))
		b.plugin.reread = func(uint64) error {
			b.door.Use(&door.Credential{Generation: 2, Token: "hvs.the-next-token", ReadAt: time.Now()})
			return nil
		}
		a := b.get("/v1/kv/data/app")
		must.Eq(t, again, a.StatusCode == 200, must.Sprint(errors))
		if !again {
			must.Eq(t, `{"errors":`+errors+`}`, a.body)
		}
	}
}

func TestBlocksThatAreNoDoorToVault(t *testing.T) {
	for field, v := range map[string]door.Vault{"address: ": {Address: "vault:8200"},
		"namespace: ": {Address: "https://v",
			Namespace: "a\nb"}, `paths: "a*b": `: {Address: "https://v", Paths: []string{"a*b"}}, "ca_pem: ": {Address: "https://v",
			CAs: []byte("x")}} {
		_, err := New(door.Spec{Vault: &v}, &plugin{})
		must.ErrorContains(t, err, field)
	}
}

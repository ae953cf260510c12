package vaulttest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

// serve acts on a request. Call with mu held.
func (s *Server) serve(r *http.Request, path string, body map[string]any) answer {
	if path == "auth/jwt-nomad/login" {
		return s.login(body)
	}
	value := r.Header.Get("X-Vault-Token")
	t := s.tokens[value]
	of, mounts := strings.CutPrefix(path, "sys/internal/ui/mounts/")
	switch known := t != nil && time.Now().Before(t.ends) && time.Since(t.issued) >= s.Lag; {
	case mounts && known && t.role.grants(path):
		return s.mountOf(of, r.Header.Get("X-Vault-Namespace"))
	case mounts && known:
		return unseen(of)
	case !known:
		return denied("\t* invalid token\n")
	case !t.role.grants(s.ruled(path, body)):
		return denied("")
	}
	t.used = true
	path, in := s.inside(path)
	engine, rest, _ := strings.Cut(path, "/")
	switch engine {
	case "auth":
		if t.own {
			if a, ok := s.issuing(rest, body); ok {
				return a
			}
		}
		return s.self(rest, value, t)
	case "sys":
		return s.sys(rest, body)
	case "secret":
		return s.kv2(r, in, rest)
	case "kv":
		return s.kv1(r, in+path)
	case "database":
		return s.database(in, rest, value, t)
	case "pki":
		return s.pki(rest, body)
	}
	return refuse(http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
}

// inside separates a child namespace from a path in it.
func (s *Server) inside(path string) (rest, in string) {
	if rest, ok := strings.CutPrefix(path, s.Child+"/"); ok && s.Child != "" {
		return rest, s.Child + "/"
	}
	return path, ""
}

// ruled is the path that policies must grant for a request: what is asked about a lease is asked in its namespace,
// which the lease's ID tells (vault/request_handling.go, handleCancelableRequest).
func (s *Server) ruled(path string, body map[string]any) string {
	id, _ := body["lease_id"].(string)
	if l := s.leases[id]; l != nil && strings.HasPrefix(path, "sys/leases/") {
		return l.in + path
	}
	return path
}

func (r Role) grants(path string) bool {
	if strings.Contains(path, "sys/leases/revoke") && !r.Revoke {
		return false
	}
	return !slices.ContainsFunc(r.Deny, func(prefix string) bool { return strings.HasPrefix(path, prefix) })
}

func (s *Server) login(body map[string]any) answer {
	name, _ := body["role"].(string)
	role, ok := s.Roles[name]
	if !ok {
		return refuse(http.StatusBadRequest, fmt.Sprintf("role %q could not be found", name))
	}
	if body["jwt"] != s.JWT {
		return refuse(http.StatusBadRequest, "error validating token: invalid expiration time (exp) claim: token is expired")
	}
	value, t := s.issue(role)
	return reply(map[string]any{"auth": t.auth(value, role.TTL)})
}

func (s *Server) issue(role Role) (value string, t *token) {
	s.serial++
	t = &token{role: role, issued: time.Now(), ends: time.Now().Add(role.TTL), max: limit(role.MaxTTL)}
	if !role.Batch {
		t.accessor = fmt.Sprintf("accessor-%d", s.serial)
	}
	value = fmt.Sprintf("hvs.%s-%d", Planted, s.serial)
	s.tokens[value] = t
	return value, t
}

// names are the policies of a token.
func (t *token) names() []string {
	if t.role.Bare {
		return t.role.Policies
	}
	return append([]string{"default"}, t.role.Policies...)
}

func (t *token) auth(value string, ttl time.Duration) map[string]any {
	return map[string]any{"client_token": value, "accessor": t.accessor, "policies": t.names(),
		"lease_duration": seconds(ttl), "renewable": !t.role.Batch && !t.role.Fixed}
}

// limit is when something that is issued now must end at last.
func limit(maxTTL time.Duration) time.Time {
	if maxTTL == 0 {
		maxTTL = 100 * 365 * 24 * time.Hour
	}
	return time.Now().Add(maxTTL)
}

// extend is what a renewal grants: ttl, cut where the maximum is nearer.
func extend(ttl time.Duration, most time.Time) (granted time.Duration, ends time.Time) {
	granted = min(ttl, time.Until(most))
	return granted, time.Now().Add(granted)
}

func seconds(d time.Duration) int { return int(d / time.Second) }

func (s *Server) self(path, value string, t *token) answer {
	switch path {
	case "token/lookup-self":
		return reply(map[string]any{"data": map[string]any{"ttl": seconds(time.Until(t.ends)), "accessor": t.accessor,
			"policies":  t.names(),
			"renewable": !t.role.Batch && !t.role.Fixed, "period": seconds(t.role.TTL)}})
	case "token/create":
		child, made := s.issue(Role{TTL: time.Hour, Policies: t.role.Policies})
		made.parent = value
		return reply(map[string]any{"auth": made.auth(child, time.Hour)})
	case "token/revoke-self":
		maps.DeleteFunc(s.tokens, func(other string, t *token) bool { return other == value || t.parent == value })
		for _, l := range s.leases {
			l.returned = l.returned || l.token == value && l.in == ""
		}
		return answer{status: http.StatusNoContent}
	case "token/renew-self":
		if t.role.Batch || t.role.Fixed {
			return refuse(http.StatusBadRequest, "lease is not renewable")
		}
		var granted time.Duration
		granted, t.ends = extend(t.role.TTL, t.max)
		return reply(map[string]any{"auth": t.auth(value, granted)})
	}
	return refuse(http.StatusNotFound, "unsupported path")
}

// issuing is what the cluster's own token may do beside what each token may.
func (s *Server) issuing(path string, body map[string]any) (answer, bool) {
	if name, ok := strings.CutPrefix(path, "token/roles/"); ok {
		role, ok := s.Makes[name]
		if !ok {
			return refuse(http.StatusNotFound), true
		}
		return reply(map[string]any{"data": map[string]any{"token_period": seconds(role.Period), "token_num_uses": role.Uses,
			"token_explicit_max_ttl": seconds(role.ExplicitMax),
			"renewable":              !role.Fixed, "orphan": true, "disallowed_policies": role.Disallowed}}), true
	}
	if name, ok := strings.CutPrefix(path, "token/create/"); ok {
		return s.create(name, body), true
	}
	if path == "token/revoke-accessor" {
		for value, t := range s.tokens {
			if t.accessor == body["accessor"] {
				delete(s.tokens, value)
				return answer{status: http.StatusNoContent}, true
			}
		}
		return refuse(http.StatusBadRequest, "invalid accessor"), true
	}
	return answer{}, false
}

func (s *Server) create(name string, body map[string]any) answer {
	role, ok := s.Makes[name]
	if !ok {
		return refuse(http.StatusBadRequest, "unknown role "+name)
	}
	var policies []string
	asked, _ := body["policies"].([]any)
	for _, policy := range asked {
		text, _ := policy.(string)
		if slices.Contains(role.Disallowed, text) {
			return refuse(http.StatusBadRequest, fmt.Sprintf("token policy %q is disallowed by this role", text))
		}
		policies = append(policies, text)
	}
	value, t := s.issue(Role{TTL: role.Period, MaxTTL: role.ExplicitMax, Fixed: role.Fixed, Policies: policies,
		Deny: role.Deny})
	return reply(map[string]any{"auth": t.auth(value, role.Period)})
}

func (s *Server) sys(path string, body map[string]any) answer {
	if path == "capabilities-self" {
		return denied("") // as where the default policy is not granted: what a token may do is found out by doing it
	}
	id, _ := body["lease_id"].(string)
	l := s.leases[id]
	switch path {
	case "leases/revoke":
		if l == nil {
			return refuse(http.StatusBadRequest, "invalid lease")
		}
		l.ends, l.returned = time.Time{}, true
		return answer{status: http.StatusNoContent}
	case "leases/renew":
		if l == nil || !s.lives(l) {
			return refuse(http.StatusBadRequest, "lease not found")
		}
		if l.creds.Fixed {
			return refuse(http.StatusBadRequest, "lease is not renewable")
		}
		var granted time.Duration
		granted, l.ends = extend(l.creds.TTL, l.max)
		l.renewed = append(l.renewed, time.Now())
		return reply(map[string]any{"lease_id": id, "renewable": true, "lease_duration": seconds(granted)})
	}
	return refuse(http.StatusNotFound, "unsupported path")
}

// mountOf tells where a path leads. Vault leaves out the auth/ of auth methods, and puts the whole namespace before the
// mount when it is not the one that it was asked in.
func (s *Server) mountOf(path, namespace string) answer {
	path, in := s.inside(path)
	engine, rest, _ := strings.Cut(path, "/")
	data := map[string]any{"path": engine + "/", "type": engine}
	switch engine {
	case "secret":
		data["type"], data["options"] = "kv", map[string]any{"version": "2"}
	case "kv":
		data["options"] = map[string]any{"version": "1"}
	case "auth":
		method, _, _ := strings.Cut(rest, "/")
		data["path"], data["type"] = method+"/", "approle"
	case "database", "pki":
	default:
		return unseen(path)
	}
	if in != "" && s.Mute {
		return unseen(path)
	}
	if in != "" {
		data["path"] = strings.TrimPrefix(namespace+"/", "/") + in + engine + "/"
	}
	return reply(map[string]any{"data": data})
}

func unseen(path string) answer {
	return refuse(http.StatusForbidden,
		fmt.Sprintf("preflight capability check returned 403, please ensure client's policies grant access to path \"%s/\"",
			path))
}

func (s *Server) kv1(r *http.Request, path string) answer {
	e := s.kv[path]
	switch {
	case r.URL.Query().Has("list"):
		return s.list(path)
	case e == nil:
		return refuse(http.StatusNotFound)
	}
	duration := 2764800
	if ttl, ok := e.data["ttl"].(int); ok { // vault-plugin-secrets-kv, passthrough.go
		duration = ttl
	}
	return reply(map[string]any{"request_id": s.request(), "data": e.data, "lease_duration": duration})
}

func (s *Server) kv2(r *http.Request, in, path string) answer {
	if dir, ok := strings.CutPrefix(path, "metadata/"); ok && r.URL.Query().Has("list") {
		return s.list(in + "secret/" + dir)
	}
	name, ok := strings.CutPrefix(path, "data/")
	if !ok {
		return answer{http.StatusNotFound, map[string]any{"warnings": []string{
			"Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use."}}}
	}
	e := s.kv[in+"secret/"+name]
	if v := r.URL.Query().Get("version"); e == nil || v != "" && v != fmt.Sprint(e.version) { // older ones are not kept
		return refuse(http.StatusNotFound)
	}
	meta := map[string]any{"version": e.version, "destroyed": e.destroyed, "deletion_time": ""}
	if e.deleted {
		meta["deletion_time"] = "2026-01-02T03:04:05Z"
		return answer{http.StatusNotFound, map[string]any{"data": map[string]any{"data": nil, "metadata": meta}}}
	}
	return reply(map[string]any{"request_id": s.request(), "data": map[string]any{"data": e.data, "metadata": meta}})
}

func (s *Server) list(dir string) answer {
	var keys []string
	for path := range maps.Keys(s.kv) {
		if name, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/"); ok {
			keys = append(keys, name)
		}
	}
	if keys == nil {
		return refuse(http.StatusNotFound)
	}
	slices.Sort(keys)
	return reply(map[string]any{"data": map[string]any{"keys": keys}})
}

func (s *Server) request() string {
	s.serial++
	return fmt.Sprintf("request-%d", s.serial)
}

func (s *Server) database(in, path, value string, t *token) answer {
	if name, ok := strings.CutPrefix(path, "static-creds/"); ok && s.static[name] > 0 {
		return s.staticCreds(name)
	}
	name, _ := strings.CutPrefix(path, "creds/")
	creds, ok := s.Creds[name]
	if !ok {
		return refuse(http.StatusBadRequest, fmt.Sprintf("unknown role: %s", name))
	}
	s.serial++
	id := fmt.Sprintf("database/creds/%s/%d", name, s.serial)
	if in != "" { // the ID has the path in the lease's namespace and, after a dot, that namespace's own ID
		id += ".child"
	}
	l := &lease{token: value, in: in, creds: creds, issued: time.Now(), ends: time.Now().Add(creds.TTL),
		max: limit(creds.MaxTTL)}
	if t.role.Batch && t.ends.Before(l.max) {
		l.max = t.ends
	}
	s.leases[id] = l
	return reply(map[string]any{"request_id": s.request(), "lease_id": id, "lease_duration": seconds(creds.TTL),
		"renewable": !creds.Fixed,
		"data":      map[string]any{"username": user(id), "password": Planted + user(id)}})
}

func (s *Server) staticCreds(name string) answer {
	period := s.static[name]
	age := time.Since(s.began)
	return reply(map[string]any{"request_id": s.request(), "data": map[string]any{
		"username": name, "password": fmt.Sprintf("%s-%d-%d", Planted, age/period, s.rotated),
		"ttl": seconds(period - age%period), "rotation_period": seconds(period)}})
}

func (s *Server) pki(path string, body map[string]any) answer {
	if cert, ok := body["certificate"].(string); ok && strings.HasPrefix(path, "revoke") {
		if path == "revoke-with-key" && body["private_key"] != s.certs[cert] {
			return refuse(http.StatusBadRequest, "unable to verify key")
		}
		s.revoked[cert] = true
		return reply(map[string]any{"request_id": s.request(), "data": map[string]any{"revocation_time": time.Now().Unix()}})
	}
	s.serial++
	ttl := time.Hour
	if text, ok := body["ttl"].(string); ok {
		ttl, _ = time.ParseDuration(text)
	}
	name, _ := body["common_name"].(string)
	names, _ := body["alt_names"].(string)
	ca, _ := certificate(0, "root", "", true)
	cert, key := certificate(s.serial, name, names, false)
	s.certs[cert] = key
	return reply(map[string]any{"request_id": s.request(), "data": map[string]any{"certificate": cert, "private_key": key,
		"serial_number": fmt.Sprintf("%02x", s.serial),
		"issuing_ca":    ca, "ca_chain": []string{ca}, "expiration": time.Now().Add(s.Ahead + ttl).Unix()}})
}

// certificate is signed with its own key, which is enough for those who look at no more than the form.
func certificate(serial int, name, names string, isCA bool) (cert, key string) {
	public, private, _ := ed25519.GenerateKey(nil)
	form := &x509.Certificate{SerialNumber: big.NewInt(int64(serial)), Subject: pkix.Name{CommonName: name}, IsCA: isCA,
		DNSNames: strings.Split(names, ","), BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, form, form, public, private)
	if err != nil {
		panic(err) // of a form that nobody can sign
	}
	raw, _ := x509.MarshalPKCS8PrivateKey(private)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

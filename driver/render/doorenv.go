package render

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
)

// DoorSocket is where a door's socket is in the task's directory.
func DoorSocket(name string) string { return "secrets/" + name + ".sock" }

// PostgresSocket is the name under which clients of PostgreSQL look for the socket of a port.
func PostgresSocket(port int) string { return fmt.Sprintf("secrets/.s.PGSQL.%d", port) }

// userOfDoors is what clients that insist on a user or a token may say. Doors take no notice of it.
const userOfDoors = "door"

// doorEnv is where the task finds its doors. What the job sets itself stays as it is.
func (r *Renderer) doorEnv(env map[string]string) {
	set := func(name, value string) {
		if _, own := r.cfg.Env[name]; !own {
			env[name] = value
		}
	}
	dir, ports := r.cfg.Env["NOMAD_SECRETS_DIR"], r.conf.PostgresPorts()
	var toVault, toPostgres []string
	for _, name := range slices.Sorted(maps.Keys(r.conf.Doors)) {
		d := r.conf.Doors[name]
		set(d.Variables()+"SOCK", path.Join(dir, name+".sock"))
		if at := r.doorURL(name, ports[name]); at != nil {
			set(d.Variables()+"URL", at.String())
		}
		switch {
		case d.Spec.Vault != nil:
			toVault = append(toVault, name)
		case d.Spec.Postgres != nil:
			toPostgres = append(toPostgres, name)
		}
	}
	if len(toVault) == 1 {
		set("VAULT_ADDR", "unix://"+path.Join(dir, toVault[0]+".sock"))
		set("VAULT_TOKEN", userOfDoors)
	}
	_, host := r.cfg.Env["PGHOST"]
	_, port := r.cfg.Env["PGPORT"]
	if len(toPostgres) == 1 && !host && !port { // else the job means another server
		name := toPostgres[0]
		set("PGHOST", dir)
		set("PGPORT", strconv.Itoa(ports[name]))
		set("PGDATABASE", r.conf.Doors[name].Database())
		set("PGUSER", userOfDoors)
	}
}

// doorURL returns the address of a door over TCP, with what only this task knows; of a door to a database else that of
// its socket. Others have nil: there is no URL of a socket that all clients know.
func (r *Renderer) doorURL(name string, port int) *url.URL {
	d := r.conf.Doors[name]
	secret, at := r.DoorSecrets[name], fmt.Sprintf("127.0.0.1:%d", d.Listen)
	switch {
	case d.Listen != 0 && d.Spec.Postgres != nil:
		return &url.URL{Scheme: "postgres", User: url.UserPassword(userOfDoors, secret), Host: at,
			Path: "/" + d.Database(), RawQuery: "sslmode=disable"}
	case d.Listen != 0:
		return &url.URL{Scheme: "http", Host: at, Path: "/" + secret}
	case d.Spec.Postgres != nil:
		return &url.URL{Scheme: "postgres", User: url.User(userOfDoors), Path: "/" + d.Database(),
			RawQuery: fmt.Sprintf("host=%s&port=%d", r.cfg.Env["NOMAD_SECRETS_DIR"], port)}
	}
	return nil
}

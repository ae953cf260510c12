package check

import (
	"encoding/json"
	"slices"
	"strings"
)

// A claim is what is known of one before the task runs.
type claim struct {
	value   string
	known   bool   // whether the value is
	missing string // what to do for the identity to have it; empty if it has it, or may
}

// userClaim is the claim that Vault makes the entity's name of, as a path of claim.
func (l *login) userClaim() string {
	name, _ := l.settings["user_claim"].(string)
	if l.settings["user_claim_json_pointer"] != true && strings.HasPrefix(name, "/") {
		return "/" + name // no pointer leads to such a name
	}
	return name
}

// ofTask are claims of every identity whose values only a running task knows.
var ofTask = []string{"nomad_allocation_id", "sub", "iss", "aud", "exp", "iat", "nbf", "jti"}

// vaultPrefix begins the names of the identities that Nomad gives claims for Vault (nomad/structs/workload_id.go).
const vaultPrefix = "vault_"

// claim returns what is known of a claim: a name, or a pointer that begins with a slash.
func (l *login) claim(path string) claim {
	name := strings.TrimPrefix(path, "/")
	if value, ok := l.claims[name]; ok {
		return claim{value: value, known: true}
	}
	extra, isExtra := strings.CutPrefix(path, "/extra_claims/")
	switch {
	case isExtra:
		return l.extraClaim(extra)
	case slices.Contains(ofTask, name):
		return claim{}
	case name == "vault_role" || name == "vault_namespace":
		return claim{missing: "keep Nomad's own vault block, outside of config, with it: its identity alone has that claim"}
	}
	return claim{missing: "name a claim that Nomad's identities have"}
}

// extraClaim returns one of those that the servers' configuration adds.
func (l *login) extraClaim(name string) claim {
	if !strings.HasPrefix(l.identity.name, vaultPrefix) {
		return claim{missing: "name the task's identity " + vaultPrefix + "default, and write identity = \"" + vaultPrefix +
			"default\" into the vault block of config: Nomad adds extra_claims to no other"}
	}
	if l.extras == nil {
		return claim{}
	}
	all, readable := l.extras(strings.TrimPrefix(l.identity.name, vaultPrefix))
	value, has := all[name]
	if readable && !has {
		return claim{missing: "write " + name + " into vault { default_identity { extra_claims { } } } of Nomad's servers"}
	}
	return claim{value: value, known: has && !strings.Contains(value, "${")}
}

// extraClaims returns those that Nomad's servers add to the identity of a Vault cluster. It is false if NOMAD_ADDR is
// no server, or the token may not read its configuration.
func (c *checker) extraClaims(cluster string) (claims map[string]string, readable bool) {
	self, err := c.nomad.Agent().Self()
	if err != nil {
		return nil, false
	}
	var config struct {
		Server struct{ Enabled bool }
		Vaults []struct {
			Name            string
			DefaultIdentity struct{ ExtraClaims map[string]string }
		}
	}
	text, err := json.Marshal(self.Config)
	if err != nil || json.Unmarshal(text, &config) != nil || !config.Server.Enabled {
		return nil, false
	}
	for _, vault := range config.Vaults {
		if vault.Name == cluster {
			claims = vault.DefaultIdentity.ExtraClaims
		}
	}
	return claims, true
}

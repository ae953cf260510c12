package setup

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// madeBy marks what setup may remove: it ends the description of a mount, and the first line of a policy has it after
// #.
const madeBy = "made by nomad-driver-vault setup"

// objects are what setup makes in a Vault.
type objects struct {
	path, role, policy, kv string // their names
	audience               string // of the tasks' identities
	jwksURL, jwksCA        string // where Vault finds Nomad's keys; the CA is a certificate in PEM
	jwksURLGiven           bool   // by a flag: it may replace another
}

func (o objects) configPath() string { return "auth/" + o.path + "/config" }
func (o objects) rolePath() string   { return "auth/" + o.path + "/role/" + o.role }

func (o objects) config() settings {
	c := settings{"jwks_url": o.jwksURL, "jwt_supported_algs": []any{"RS256", "EdDSA"}, "default_role": o.role}
	if o.jwksCA != "" {
		c["jwks_ca_pem"] = o.jwksCA
	}
	return c
}

// roleSettings are those of nomad setup vault, with a token that can be renewed for as long as the task runs: it is
// periodic and has no maximum TTL.
func (o objects) roleSettings() settings {
	return settings{
		"role_type": "jwt", "bound_audiences": []any{o.audience},
		"user_claim": "/nomad_job_id", "user_claim_json_pointer": true,
		"claim_mappings": map[string]any{
			"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task"},
		"token_type": "service", "token_policies": []any{o.policy}, "token_period": 1800., "token_explicit_max_ttl": 0.,
	}
}

// rules are those of nomad setup vault. Vault puts namespace and job of the identity into the paths.
func (o objects) rules(accessor string) (rules []string) {
	claim := "{{identity.entity.aliases." + accessor + ".metadata."
	namespace, job := claim+"nomad_namespace}}", claim+"nomad_job_id}}"
	for _, rule := range [][2]string{
		{"data/" + namespace + "/" + job + "/*", "read"},
		{"data/" + namespace + "/" + job, "read"},
		{"metadata/" + namespace + "/*", "list"},
		{"metadata/*", "list"},
	} {
		rules = append(rules, fmt.Sprintf("path \"%s/%s\" {\n  capabilities = [\"%s\"]\n}\n", o.kv, rule[0], rule[1]))
	}
	return rules
}

// missingRules are the rules that a policy lacks.
func (o objects) missingRules(policy, accessor string) string {
	have := compact(policy)
	return strings.Join(slices.DeleteFunc(o.rules(accessor), func(rule string) bool {
		return strings.Contains(have, compact(rule))
	}), "")
}

// compact is a policy without comments and spacing.
func compact(policy string) string {
	var b strings.Builder
	for line := range strings.Lines(policy) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			b.WriteString(strings.Join(strings.Fields(line), ""))
		}
	}
	return b.String()
}

// settings are the fields of an object in Vault, as they are written and read.
type settings map[string]any

// lines are the settings as a Vault policy or Terraform writes them: JSON values are HCL.
func (s settings) lines() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s = %s\n", key, toJSON(s[key]))
	}
	return b.String()
}

// mergeInto returns have with s laid over it, and a line for each setting of have that changes.
func (s settings) mergeInto(have settings) (merged settings, changes []string) {
	merged = settings{}
	maps.Copy(merged, have)
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if merged[key] = mergeValue(have[key], s[key]); !reflect.DeepEqual(merged[key], have[key]) {
			changes = append(changes, fmt.Sprintf("%s: %s -> %s", key, toJSON(have[key]), toJSON(merged[key])))
		}
	}
	return merged, changes
}

// mergeValue is what is wanted. A list or a map keeps what others have added to it.
func mergeValue(have, want any) any {
	switch want := want.(type) {
	case []any:
		have, _ := have.([]any)
		missing := slices.DeleteFunc(slices.Clone(want), func(v any) bool { return slices.Contains(have, v) })
		return append(slices.Clone(have), missing...)
	case map[string]any:
		have, _ := have.(map[string]any)
		merged := map[string]any{}
		maps.Copy(merged, have)
		maps.Copy(merged, want)
		return merged
	}
	return want
}

// toJSON cannot fail: the values are from JSON, or of this file.
func toJSON(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

// indent puts a prefix before each line and ends the last one.
func indent(prefix, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(prefix + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

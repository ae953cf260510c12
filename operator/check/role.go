package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// readRole reads what the role grants, and reports whether there is such a role.
func (l *login) readRole(ctx context.Context) (found bool, err error) {
	methods, err := l.as.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return false, l.as.Explain("list auth methods", err)
	}
	if l.role == "" {
		config, err := l.as.Read(ctx, "auth/"+l.path+"/config")
		if err != nil {
			return false, err
		}
		l.role, _ = config["default_role"].(string)
	}
	l.settings, err = l.as.Read(ctx, "auth/"+l.path+"/role/"+l.role)
	method := methods[l.path+"/"]
	if err != nil || l.settings == nil || method == nil {
		return false, err
	}
	known := l.placeholders(method.Accessor)
	for _, name := range l.policies() {
		text, err := l.as.Policy(ctx, name)
		if err == nil {
			err = l.acl.add(name, text, known)
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// placeholders returns the values of a policy's placeholders after a login at the auth method with that accessor.
func (l *login) placeholders(accessor string) map[string]string {
	prefix := "identity.entity.aliases." + accessor + "."
	known := map[string]string{}
	if user := l.claim(l.userClaim()); user.missing == "" {
		known[prefix+"name"] = user.value
	}
	mappings, _ := l.settings["claim_mappings"].(map[string]any)
	for name, key := range mappings {
		if c := l.claim(name); c.known {
			known[prefix+"metadata."+fmt.Sprint(key)] = c.value
		}
	}
	return known
}

// policies are the names of those that the role grants.
func (l *login) policies() []string {
	names := toStrings(l.settings["token_policies"])
	if l.settings["token_no_default_policy"] != true {
		names = append([]string{"default"}, names...)
	}
	return names
}

// toStrings reads a list of strings, or one string.
func toStrings(v any) (all []string) {
	if list, ok := v.([]any); ok {
		for _, one := range list {
			all = append(all, fmt.Sprint(one))
		}
	} else if v != nil {
		all = []string{fmt.Sprint(v)}
	}
	return all
}

// checkRole compares what the role requires with the claims that the task's identity will have. What Vault would refuse
// is said in its words (hashicorp/vault-plugin-auth-jwt, path_login.go and claims.go).
func (l *login) checkRole(r *report) {
	role, before := fmt.Sprintf("role %q of auth/%s", l.role, l.path), len(r.findings)
	l.checkAudience(r, role)
	if c := l.claim(l.userClaim()); c.missing != "" {
		r.problem(l.about, c.missing+", or set user_claim = \"/nomad_job_id\" and user_claim_json_pointer = true, as "+
			"nomad-driver-vault setup does", "user_claim of %s: claim %q not found in token", role, l.settings["user_claim"])
	}
	if subject, _ := l.settings["bound_subject"].(string); subject != "" && !strings.HasSuffix(subject, ":"+l.subject) {
		r.problem(l.about, fmt.Sprintf("it is for %q, and the task's is <region>:%s: correct or remove bound_subject",
			subject, l.subject), "%s: sub claim does not match bound subject", role)
	}
	l.checkBoundClaims(r, role)
	if len(r.findings) == before {
		r.ok(l.about, "%s admits the task", role)
	}
}

func (l *login) checkAudience(r *report, role string) {
	bound := toStrings(l.settings["bound_audiences"])
	isBound := func(aud string) bool { return slices.Contains(bound, aud) }
	if len(bound)+len(l.audience) == 0 || slices.ContainsFunc(l.audience, isBound) {
		return
	}
	says := "audience claim does not match any expected audience"
	if len(bound) == 0 {
		says = "audience claim found in JWT but no audiences bound to the role"
	}
	r.problem(l.about, fmt.Sprintf("aud is %q, and bound_audiences %q: make aud of the task's identity block one of "+
		"bound_audiences of role %q, or add it there", l.audience, bound, l.role), "%s: %s", role, says)
}

func (l *login) checkBoundClaims(r *report, role string) {
	claims, _ := l.settings["bound_claims"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		c := l.claim(name)
		wanted := toStrings(claims[name])
		accepted := func(w string) bool {
			return w == c.value || l.settings["bound_claims_type"] == "glob" && globMatches(w, c.value)
		}
		switch {
		case c.missing != "":
			r.problem(l.about, c.missing+", or take it out of bound_claims", "%s does not admit this job: claim %q is missing",
				role, name)
		case !c.known:
			r.warn(l.about, "", "bound_claims of %s has %q, which is not known before the task runs", role, name)
		case !slices.ContainsFunc(wanted, accepted):
			r.problem(l.about, fmt.Sprintf("it is %q, and bound_claims wants one of %q: add it there, or name another role in "+
				"the task's vault block", c.value, wanted), "%s does not admit this job: claim %q does not match any associated "+
				"bound claim values", role, name)
		}
	}
}

package check

import (
	"cmp"
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
	user := strings.TrimPrefix(fmt.Sprint(l.settings["user_claim"]), "/")
	known := map[string]string{prefix + "name": l.claims[user]}
	mappings, _ := l.settings["claim_mappings"].(map[string]any)
	for claim, key := range mappings {
		if value, ok := l.claims[cmp.Or(strings.TrimPrefix(claim, "/"), claim)]; ok {
			known[prefix+"metadata."+fmt.Sprint(key)] = value
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

// checkRole compares what the role requires with the claims that the task's identity will have.
func (l *login) checkRole(r *report) {
	role, before := fmt.Sprintf("role %q of auth/%s", l.role, l.path), len(r.findings)
	bound := toStrings(l.settings["bound_audiences"])
	isBound := func(aud string) bool { return slices.Contains(bound, aud) }
	if len(bound)+len(l.audience) > 0 && !slices.ContainsFunc(l.audience, isBound) {
		r.problem(l.about, fmt.Sprintf("make aud of the task's identity block one of bound_audiences of role %q, "+
			"or add it there", l.role), "aud is %q, and %s wants one of %q", l.audience, role, bound)
	}
	if !l.hasUserClaim() {
		r.problem(l.about,
			`set user_claim = "/nomad_job_id" and user_claim_json_pointer = true, as nomad-driver-vault setup does`,
			"user_claim of %s is %q, which Nomad's identities do not have", role, l.settings["user_claim"])
	}
	if subject, _ := l.settings["bound_subject"].(string); subject != "" && !strings.HasSuffix(subject, ":"+l.subject) {
		r.problem(l.about, "correct or remove bound_subject",
			"%s is for the subject %q, and the task's is <region>:%s", role, subject, l.subject)
	}
	l.checkBoundClaims(r, role)
	if len(r.findings) == before {
		r.ok(l.about, "%s admits the task", role)
	}
}

// hasUserClaim reports whether Nomad's identities have the claim that Vault makes the entity's name of.
func (l *login) hasUserClaim() bool {
	written, _ := l.settings["user_claim"].(string)
	name := strings.TrimPrefix(written, "/")
	if name != written && l.settings["user_claim_json_pointer"] != true {
		return false
	}
	_, known := l.claims[name]
	return known || name == "nomad_allocation_id" || name == "sub"
}

func (l *login) checkBoundClaims(r *report, role string) {
	claims, _ := l.settings["bound_claims"].(map[string]any)
	for _, claim := range slices.Sorted(maps.Keys(claims)) {
		value, known := l.claims[strings.TrimPrefix(claim, "/")]
		wanted := toStrings(claims[claim])
		accepted := func(w string) bool {
			return w == value || l.settings["bound_claims_type"] == "glob" && globMatches(w, value)
		}
		switch {
		case !known:
			r.warn(l.about, "", "bound_claims of %s has %q, which is not known before the task runs", role, claim)
		case !slices.ContainsFunc(wanted, accepted):
			r.problem(l.about, "add it to bound_claims, or name another role in the task's vault block",
				"%s does not admit this job: %s is %q, and bound_claims wants one of %q", role, claim, value, wanted)
		}
	}
}

package check

import (
	"cmp"
	"maps"
	"testing"

	"github.com/shoenig/test/must"
)

func TestARoleAdmitsTheJob(t *testing.T) {
	role := func(more map[string]any) map[string]any {
		s := map[string]any{"bound_audiences": []any{"vault.io"}, "user_claim": "/nomad_job_id",
			"user_claim_json_pointer": true}
		maps.Copy(s, more)
		return s
	}
	for sentence, c := range map[string]struct {
		role map[string]any
		says string // "ok" or the beginning of the finding
	}{
		"by its audience":          {role(nil), "ok"},
		"a role without audiences": {role(map[string]any{"bound_audiences": nil}), `problem role "r" of auth/jwt: audience claim found in JWT but no audiences bound`},
		"another user claim":       {role(map[string]any{"user_claim": "sub"}), "ok"},
		"a pointer that is none":   {role(map[string]any{"user_claim_json_pointer": false}), "problem user_claim"},
		"a user claim of others":   {role(map[string]any{"user_claim": "/email"}), "problem user_claim"},
		"a claim that is bound": {role(map[string]any{"bound_claims": map[string]any{"nomad_job_id": "api"}}),
			"ok"},
		"by a pointer, and in a list": {role(map[string]any{"bound_claims": map[string]any{"/nomad_namespace": []any{"a",
			"default"}}}), "ok"},
		"a claim that is bound to others": {role(map[string]any{"bound_claims": map[string]any{"nomad_task": []any{"a"}}}),
			`problem role "r" of auth/jwt does not admit this job: claim "nomad_task" does not match`},
		"a glob, where it is not one": {role(map[string]any{"bound_claims": map[string]any{"nomad_job_id": "ap*"}}),
			"problem"},
		"a glob": {role(map[string]any{"bound_claims_type": "glob",
			"bound_claims": map[string]any{"nomad_job_id": "a*"}}), "ok"},
		"a glob for others": {role(map[string]any{"bound_claims_type": "glob",
			"bound_claims": map[string]any{"nomad_job_id": "b*i"}}), "problem"},
		"a claim that is not known before": {role(map[string]any{"bound_claims": map[string]any{"nomad_allocation_id": "x"}}),
			"warning bound_claims"},
		"a bound claim of others": {role(map[string]any{"bound_claims": map[string]any{"email": "x"}}),
			`problem role "r" of auth/jwt does not admit this job: claim "email" is missing`},
		"a pointer into nothing": {role(map[string]any{"user_claim": "extra_claims/team"}), "problem user_claim"},
		"the servers' claims, for a name that gets none": {role(map[string]any{"user_claim": "/extra_claims/team"}),
			"problem user_claim"},
		"bound by the servers' claims, for a name that gets none": {role(map[string]any{"bound_claims": map[string]any{
			"/extra_claims/team": "blue"}}), "problem role"},
		"a subject, whatever the region": {role(map[string]any{"bound_subject": "eu:default:api:g:web:vault"}), "ok"},
		"a subject of another task": {role(map[string]any{"bound_subject": "eu:default:api:g:other:vault"}),
			"problem role"},
	} {
		t.Run(sentence, func(t *testing.T) {
			who := identity{audience: []string{"vault.io"}, subject: "default:api:g:web:vault",
				claims: map[string]string{"nomad_job_id": "api", "nomad_namespace": "default", "nomad_task": "web"}}
			l := login{about: "x", role: "r", path: "jwt", settings: c.role, identity: who}
			var check report
			l.checkRole(&check)
			must.SliceLen(t, 1, check.findings)
			must.StrHasPrefix(t, c.says, check.findings[0].Status+" "+check.findings[0].Message)
		})
	}
}

func TestClaimsOfTheServers(t *testing.T) {
	user := func(claim string) map[string]any { return map[string]any{"user_claim": "/extra_claims/" + claim} }
	bound := func(claim, value string) map[string]any {
		return map[string]any{"bound_claims": map[string]any{"/extra_claims/" + claim: value}}
	}
	for sentence, c := range map[string]struct {
		role     map[string]any
		hidden   bool   // from the one who checks
		identity string // "vault_default" where empty
		says     string
		fix      string // part of it
	}{
		"as the user":         {role: user("id"), says: "ok"},
		"as the user, unseen": {role: user("id"), hidden: true, says: "ok"},
		"not there":           {role: user("no"), says: "problem", fix: "write no into vault {"},
		"bound":               {role: bound("team", "blue"), says: "ok"},
		"bound to another": {role: bound("team", "red"), says: "problem",
			fix: `it is "blue"`},
		"bound, unseen": {role: bound("team", "red"), hidden: true,
			says: "warning"},
		"bound, of the task": {role: bound("id", "x"), says: "warning"},
		"of another cluster": {role: user("id"), identity: "vault_east", says: "problem",
			fix: "write id into vault {"},
		"of another identity": {role: user("id"), identity: "vault", says: "problem",
			fix: "name the task's identity vault_default"},
	} {
		t.Run(sentence, func(t *testing.T) {
			settings := map[string]any{"user_claim": "/nomad_job_id", "user_claim_json_pointer": true}
			maps.Copy(settings, c.role)
			l := login{about: "x", role: "r", path: "jwt", settings: settings, identity: identity{
				name: cmp.Or(c.identity, "vault_default"), claims: map[string]string{"nomad_job_id": "api"}}}
			l.extras = func(cluster string) (map[string]string, bool) {
				if c.hidden || cluster != "default" {
					return nil, !c.hidden
				}
				return map[string]string{"team": "blue", "id": "${alloc.id}"}, true
			}
			var check report
			l.checkRole(&check)
			must.SliceLen(t, 1, check.findings)
			must.Eq(t, c.says, check.findings[0].Status)
			must.StrContains(t, check.findings[0].Fix, c.fix)
		})
	}
}

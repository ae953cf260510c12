package check

import (
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
		"a role without audiences": {role(map[string]any{"bound_audiences": nil}), `problem aud is ["vault.io"]`},
		"another user claim":       {role(map[string]any{"user_claim": "sub"}), "ok"},
		"a pointer that is none":   {role(map[string]any{"user_claim_json_pointer": false}), "problem user_claim"},
		"a user claim of others":   {role(map[string]any{"user_claim": "/email"}), "problem user_claim"},
		"a claim that is bound": {role(map[string]any{"bound_claims": map[string]any{"nomad_job_id": "api"}}),
			"ok"},
		"by a pointer, and in a list": {role(map[string]any{"bound_claims": map[string]any{"/nomad_namespace": []any{"a",
			"default"}}}), "ok"},
		"a claim that is bound to others": {role(map[string]any{"bound_claims": map[string]any{"nomad_task": []any{"a"}}}),
			`problem role "r" of auth/jwt does not admit this job: nomad_task is "web"`},
		"a glob, where it is not one": {role(map[string]any{"bound_claims": map[string]any{"nomad_job_id": "ap*"}}),
			"problem"},
		"a glob": {role(map[string]any{"bound_claims_type": "glob",
			"bound_claims": map[string]any{"nomad_job_id": "a*"}}), "ok"},
		"a glob for others": {role(map[string]any{"bound_claims_type": "glob",
			"bound_claims": map[string]any{"nomad_job_id": "b*i"}}), "problem"},
		"a claim that is not known before": {role(map[string]any{"bound_claims": map[string]any{"nomad_allocation_id": "x"}}),
			"warning bound_claims"},
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

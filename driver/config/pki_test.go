package config

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestPKIBlockKnowsWhereItsCertificatesAreRevoked(t *testing.T) {
	for path, want := range map[string]string{
		"pki/issue/app":                 "pki/revoke-with-key",
		"/pki/issue/app":                "pki/revoke-with-key",
		"a/b/issue/app":                 "a/b/revoke-with-key",
		"pki/issuer/2026/issue/app":     "pki/revoke-with-key",
		"issue/issue/issue":             "issue/revoke-with-key",
		"pki/sign/app":                  "pki/revoke",
		"pki/issuer/2026/sign/app":      "pki/revoke",
		"pki/sign-verbatim/app":         "pki/revoke",
		"pki/sign-verbatim":             "pki/revoke",
		"pki/root/generate/internal":    "",
		"issue/app":                     "",
		"pki/issuers/generate/root/kms": "",
	} {
		must.Eq(t, want, (&PKI{Path: path}).RevokedAt(), must.Sprint(path))
	}
}

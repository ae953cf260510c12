package driver

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/vault/vaulttest"
)

func pkiHCL(name, more string) string {
	return "pki \"" + name + "\" {\n path = \"pki/issue/app\"\n splay = \"0s\"\n " + more + "\n}\n"
}

const everyFile = `common_name = "a.example"
	alt_names = ["b.example", "c.example"]
	cert_file = "secrets/tls.crt"
	key_file = "secrets/tls.key"
	ca_file = "local/ca.crt"
	chain_file = "secrets/chain.crt"
	bundle_file = "secrets/bundle.pem"
	`

// issued checks that all files of a pki block are of one certificate, and returns it.
func (h *host) issued() *x509.Certificate {
	h.Helper()
	cert, key, ca := h.file("secrets/tls.crt"), h.file("secrets/tls.key"), h.file("local/ca.crt")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	must.NoError(h, err)
	must.Eq(h, 1, strings.Count(ca, "BEGIN CERTIFICATE"))
	must.Eq(h, cert+ca, h.file("secrets/chain.crt"))
	must.Eq(h, key+cert+ca, h.file("secrets/bundle.pem"))
	return pair.Leaf
}

func TestPKIBlockIsOneCertificateInAllItsFiles(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + pkiHCL("web", everyFile+"ttl = \"1h\"\n"+onSignal) +
			templateHCL("local/cn", `{{ with pkiCert "pki/issue/app" "common_name=a.example" "alt_names=b.example,c.example" "ttl=1h" }}{{ .Cert }}{{ end }}`, onNoop))
		first := h.issued()
		must.Eq(t, "a.example", first.Subject.CommonName)
		must.Eq(t, []string{"b.example", "c.example"}, first.DNSNames)
		must.Eq(t, h.file("secrets/tls.crt"), h.file("local/cn"), must.Sprint("the same question, the same certificate"))
		for file, mode := range map[string]int{"secrets/tls.crt": 0o644, "secrets/tls.key": 0o600, "local/ca.crt": 0o644,
			"secrets/chain.crt": 0o644, "secrets/bundle.pem": 0o600} {
			must.Eq(t, mode, int(h.modeOf(file)), must.Sprint(file))
		}
		after(10 * time.Minute)
		h.reboot()
		r.recovered()
		after(10 * time.Minute)
		must.Eq(t, []string{"recover"}, r.did())
		must.Eq(t, first.SerialNumber, h.issued().SerialNumber)
		must.Eq(t, 1, h.Calls("PUT pki/"))

		after(34 * time.Minute) // 85 % of the hour
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.NotEq(t, first.SerialNumber, h.issued().SerialNumber)
		must.SliceContains(t, h.events(), `Secrets changed: local/cn, pki "web"; sent SIGHUP`)
		must.Eq(t, 2, h.Calls("PUT pki/"))
		r.stop()
		after(2 * time.Minute)
		h.nothingLeft()
	})
}

func TestPKIBlockIsRenewedAsLongBeforeAsItSays(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + pkiHCL("web", everyFile+"ttl = \"1h\"\n renew_before = \"30m\"\n perms = \"0640\""))
		must.Eq(t, 0o640, int(h.modeOf("secrets/tls.key")))
		must.Eq(t, 0o644, int(h.modeOf("secrets/tls.crt")))
		after(29 * time.Minute)
		must.SliceEmpty(t, r.did())
		after(2 * time.Minute)
		must.Eq(t, []string{"stop 5s", "destroy", "start"}, r.did())
		must.Eq(t, []string{`Secrets changed: pki "web"; restarted by vault-fake`}, h.events())
		must.Eq(t, 2, h.Calls("PUT pki/"))
	})
}

func TestPKIBlockThatCannotBeRenewedKeepsItsFiles(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + pkiHCL("web", everyFile+"ttl = \"1h\"\n"+onSignal))
		first := h.issued()
		mend := h.Break(vaulttest.Fault{Match: "PUT pki/", Status: 403})
		after(2 * time.Hour)
		must.SliceEmpty(t, r.did())
		must.Eq(t, first.SerialNumber, h.issued().SerialNumber)
		must.StrContains(t, only(t, h.events()), "Vault: write pki/issue/app: denied by Vault")
		mend()
		after(2 * time.Minute)
		must.Eq(t, []string{"signal SIGHUP"}, r.did())
		must.NotEq(t, first.SerialNumber, h.issued().SerialNumber)
	})
}

var invalidPKIs = map[string]struct{ config, says string }{
	"no path": {`pki "web" { cert_file = "secrets/x" }`,
		`pki "web": path is required: name a role such as "pki/issue/app"`},
	"no file": {pkiHCL("web", ""), `pki "web": no file is asked for: set one of cert_file, key_file`},
	"a name with a slash": {pkiHCL("a/b", `cert_file = "secrets/x"`),
		`pki "a/b": name: use letters, digits, -, _ and ., which is not the first`},
	"one file for two": {pkiHCL("web", "cert_file = \"secrets/x\"\nkey_file = \"/secrets/x\""),
		`pki "web": key_file: pki "web" has the same: choose another`},
	"a file of a secret block": {secretHCL("x", "") + pkiHCL("web", `ca_file = "secrets/x"`),
		`pki "web": ca_file: secret "x" has the same: choose another`},
	"a file outside": {pkiHCL("web", `bundle_file = "../x"`),
		`pki "web": bundle_file: path "../x" is not below the task's directory`},
	"another format": {pkiHCL("web", "cert_file = \"secrets/x\"\nargs = { format = \"der\" }"),
		`pki "web": args.format: the files are PEM`},
	"an option among the args": {pkiHCL("web", "cert_file = \"secrets/x\"\nargs = { ttl = \"1h\" }"),
		`pki "web": args.ttl: set ttl itself`},
	"renew_before is none": {pkiHCL("web", "cert_file = \"secrets/x\"\nrenew_before = \"soon\""),
		`pki "web": renew_before "soon" is not a duration`},
	"renew_before is long": {pkiHCL("web", "cert_file = \"secrets/x\"\nttl = \"1h\"\nrenew_before = \"31m\""),
		`pki "web": renew_before 31m0s is more than half of ttl 1h0m0s`},
	"unknown vault": {pkiHCL("web", "cert_file = \"secrets/x\"\nvault = \"west\""),
		`pki "web": vault = "west": the task has no vault block with that name`},
	"perms is no mode": {pkiHCL("web", "cert_file = \"secrets/x\"\nperms = \"x\""),
		`pki "web": perms "x" is not an octal file mode`},
	"revoked nobody knows where": {`pki "web" {
		path = "pki/root/generate/exported"
		cert_file = "secrets/x"
		revoke = true
	}`, `pki "web": revoke: there is no telling where Vault revokes what is issued at "pki/root/generate/exported"`},
	"a mode without a signal": {pkiHCL("web", "cert_file = \"secrets/x\"\nchange_mode = \"signal\""),
		`pki "web": change_signal is missing`},
}

func TestInvalidPKIBlockFailsAtOnceAndNamesTheField(t *testing.T) {
	for name, test := range invalidPKIs {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				err := h.refused(test.config)
				must.StrContains(t, err.Error(), test.says)
				must.False(t, structs.IsRecoverable(err))
				must.Zero(t, h.Calls(""))
			})
		})
	}
}

func TestPKIBlockThatGetsNoCertificateSaysWhyAndLeavesNothing(t *testing.T) {
	key := vaulttest.Planted
	for name, test := range map[string]struct{ answer, says string }{
		"no certificate": {`{"data": {"private_key": "` + key + `"}}`,
			`pki "web": no certificate in PEM form in Vault's answer for "pki/issue/app": use a path such as pki/issue/<role>`},
		"no key": {"", `pki "web": key_file: no private key in Vault's answer: use a path such as pki/issue/<role>`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				if test.answer == "" {
					r := h.start(asApp + pkiHCL("web", "cert_file = \"secrets/tls.crt\""))
					test.answer = `{"data": {"certificate": "` + strings.ReplaceAll(h.file("secrets/tls.crt"), "\n", `\n`) + `"}}`
					r.stop()
					after(2 * time.Minute)
				}
				h.Break(vaulttest.Fault{Match: "PUT pki/", Body: test.answer})
				_, _, err := h.StartTask(h.job(asApp + pkiHCL("web", everyFile)))
				must.ErrorContains(t, err, test.says)
				must.StrNotContains(t, err.Error(), key)
				after(2 * time.Minute)
				h.nothingLeft()
			})
		})
	}
}

func TestPKIBlockIsRevokedWhereItSaysSo(t *testing.T) {
	for name, test := range map[string]struct {
		more string
		left int
	}{
		"revoke":      {"revoke = true", 0},
		"left to end": {"", 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				r := h.start(asApp + pkiHCL("web", everyFile+"ttl = \"1h\"\n"+onSignal+test.more))
				after(55 * time.Minute)
				must.Eq(t, []string{"signal SIGHUP"}, r.did())
				must.Eq(t, 2-(2-test.left)/2, h.Certificates(), must.Sprint("the one before"))
				h.reboot()
				r.recovered()
				r.stop()
				after(2 * time.Minute)
				must.Eq(t, test.left, h.Certificates())
				h.nothingLeft()
			})
		})
	}
}

func TestPKIBlockOfAStartThatFailsIsRevoked(t *testing.T) {
	bubble(t, func(h *host) {
		_ = h.refused(asApp + pkiHCL("web", everyFile+"revoke = true") + // why is of no interest
			templateHCL("local/x", `{{ with pkiCert "pki/issue/app" "common_name=a.example" "alt_names=b.example,c.example" }}{{ secret "secret/none" }}{{ end }}`, onNoop))
		must.Eq(t, 1, h.Calls("PUT pki/issue/"))
		must.Zero(t, h.Certificates())
	})
}

func TestPKIBlockOfOnceKeepsItsCertificate(t *testing.T) {
	bubble(t, func(h *host) {
		r := h.start(asApp + pkiHCL("web", everyFile+"ttl = \"1h\"\n once = true"))
		after(3 * time.Hour)
		must.SliceEmpty(t, r.did())
		must.Eq(t, 1, h.Calls("PUT pki/issue/"))
	})
}

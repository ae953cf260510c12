package check

import (
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/nomad/jobspec2"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/plugin"
)

// looked returns what check says of a task without asking anybody: its lines.
func looked(t *testing.T, driver, task, block string, local bool) []finding {
	t.Helper()
	text := "job \"web\" {\n group \"g\" {\n task \"t\" {\n driver = \"" + driver + "\"\n" + task + "\n config {\n" +
		block + "\n}\n}\n}\n}"
	job, err := jobspec2.Parse("", strings.NewReader(text))
	must.NoError(t, err)
	job.Canonicalize()
	c := &checker{job: job}
	wraps := strings.TrimPrefix(driver, "vault-")
	conf := config.Operator{Name: driver}
	if local {
		conf, err = plugin.ReadConfig(t.Context(), wraps, driver, nil)
		must.NoError(t, err)
	}
	conf.Clusters = []vault.Cluster{{Name: "default", Address: "http://v"}}
	d := &taskDriver{name: driver, wraps: wraps, local: local, conf: conf}
	group := job.TaskGroups[0]
	var asked render.Asked
	of, read, err := c.read(t.Context(), d, group, group.Tasks[0])
	if err == nil {
		asked, err = c.review(t.Context(), d, of, read)
	}
	if err != nil {
		c.refused("task", err)
		return c.findings
	}
	c.checkBeside("task", group.Tasks[0], asked)
	for _, use := range asked.Vaults {
		c.checkIdentity("vault", group.Tasks[0], use)
	}
	return c.findings
}

const (
	vaultIdentity = "identity {\n name = \"vault\"\n aud = [\"vault.io\"]\n file = true\n ttl = \"1h\"\n}\n"
	reads         = "template {\n data = \"{{ secret \\\"kv/a\\\" }}\"\n destination = \"secrets/a\"\n}\n"
)

func asksNomad(function string) string {
	return "template {\n data = \"{{ " + function + " \\\"a\\\" }}\"\n destination = \"secrets/a\"\n}\n"
}

// TestWhatAStartWouldRefuse is about a task's own text, with the configuration at hand and without.
func TestWhatAStartWouldRefuse(t *testing.T) {
	for sentence, c := range map[string]struct {
		driver, task, block string
		local               bool
		says                string // the one finding that is not ok; none: there is nothing
	}{
		"nothing": {task: vaultIdentity, block: reads},
		"a variable that nobody sets": {block: `command = "${HOMER}"`,
			says: `problem config block: Unknown variable: There is no variable named "HOMER"`},
		"one of Nomad's that there is not": {block: `command = "${NOMAD_ALOC_ID}"`,
			says: `problem config block: Unknown variable: There is no variable named "NOMAD_ALOC_ID"`},
		"meta that the job does not set": {block: `command = "${NOMAD_META_x}"`,
			says: `problem config block: Unknown variable`},
		"variables that are there": {task: "env {\n A = \"b\"\n}\nmeta {\n x = \"y\"\n}\n", block: `command = "${A}"
			args = ["${NOMAD_META_x}", "${NOMAD_META_X}", "${NOMAD_PORT_http}", "${NOMAD_ALLOC_ID}", "${node.class}",
			"${attr.kernel.name}", "${meta.rack}", "${upper(NOMAD_DC)}", "$LATER", "$$$${LATER}"]`},
		"the host's, for a driver without a root": {driver: "vault-raw_exec", block: `command = "${HOMER}"`},
		"an unknown option":                       {block: "x = 1", says: `problem config block: `},
		"a user that the operator denies": {task: `user = "root"`, local: true,
			says: `problem user "root" is not allowed: this node's operator denies it (denied_users)`},
		"a user that operators deny": {task: `user = "root"`,
			says: `warning unless the clients' configuration of the plugin allows it: user "root" is not allowed`},
		"a user of the client's":          {task: `user = "nobody-here"` + "\n" + vaultIdentity, block: reads},
		"a user that this host must know": {task: `user = "nobody-here"`, local: true, block: "secret \"x\" {\n path = \"kv/a\"\n}", says: `problem secret "x": user "nobody-here": this host does not know it`},
		"an interval that is too short": {task: vaultIdentity, local: true,
			block: strings.Replace(reads, "}\n", "poll_interval = \"1s\"\n}\n", 1),
			says:  `problem template "secrets/a": poll_interval 1s is below the 5s`},
		"one that operators find too short": {task: vaultIdentity,
			block: strings.Replace(reads, "}\n", "poll_interval = \"1s\"\n}\n", 1),
			says:  `warning unless the clients' configuration`},
		"the host's processes": {local: true, block: `pid_mode = "host"`, says: `problem config pid_mode "host" is not allowed`},
		"the host's processes, perhaps": {block: `pid_mode = "host"`,
			says: `warning unless the clients' configuration of the plugin allows it: config pid_mode "host" is not allowed`},
		"no identity": {block: reads, says: `problem identity "vault": no file secrets/nomad_vault.jwt`},
		"a variable of Nomad's without an identity": {block: asksNomad("nomadVar"),
			says: `problem template "secrets/a": Nomad's task API wants the task's own token`},
		"an identity in another file": {task: vaultIdentity, block: hiddenVault + reads,
			says: `problem identity "vault": no file private/vault.jwt`},
		"an identity in that file":            {task: hiddenIdentity, block: hiddenVault + reads},
		"a service with the default identity": {task: "identity {\n env = true\n}", block: asksNomad("nomadService")},
		"a secret on disk": {task: vaultIdentity, block: strings.Replace(reads, "secrets/a", "local/a", 1),
			says: `warning template "local/a": the file with secrets of Vault is on the node's disk`},
		"no secret on disk": {
			block: strings.Replace(strings.Replace(reads, "secrets/a", "local/a", 1), "secret ", "env ", 1)},
		"Nomad's own vault block": {task: vaultIdentity + "vault {\n}\n", block: reads,
			says: "warning for its vault block outside of config Nomad makes another token"},
		"Nomad's own template block": {task: "template {\n data = \"x\"\n destination = \"local/x\"\n}\n",
			says: "warning template blocks outside of config: 1"},
		"kill_timeout outside of config": {task: `kill_timeout = "30s"`,
			says: "warning Nomad does not tell drivers the task's kill_timeout"},
		"kill_timeout in both":          {task: `kill_timeout = "30s"`, block: `kill_timeout = "30s"`},
		"kill_signal outside of config": {task: `kill_signal = "SIGQUIT"`, says: "warning Nomad does not tell drivers the task's kill_signal"},
	} {
		t.Run(sentence, func(t *testing.T) {
			if c.driver == "" {
				c.driver = "vault-exec"
			}
			if !strings.Contains(c.block, "command") {
				c.block += "\ncommand = \"x\""
			}
			var said []string
			for _, f := range looked(t, c.driver, c.task, c.block, c.local) {
				if f.Status != statusOK {
					said = append(said, f.Status+" "+f.Message)
				}
			}
			if c.says == "" {
				must.SliceEmpty(t, said, must.Sprint(said))
				return
			}
			must.SliceLen(t, 1, said, must.Sprint(said))
			must.StrHasPrefix(t, c.says, said[0])
		})
	}
}

// TestFixesCanBePasted parses what is printed to be put into a file.
func TestFixesCanBePasted(t *testing.T) {
	var pasted []string
	for _, block := range []string{reads, asksNomad("nomadVar"),
		"vault {\n identity_file = \"secrets/x.jwt\"\n}\n" + reads} {
		for _, f := range looked(t, "vault-exec", "", "command = \"x\"\n"+block, false) {
			if f.Paste != "" {
				pasted = append(pasted, f.Paste)
			}
		}
	}
	must.SliceLen(t, 3, pasted)
	must.StrContains(t, pasted[0], `ttl  = "1h"`)
	_, stanza, _ := strings.Cut(vault.Grant("r", nil, "kv/data/a", vault.Write), "missing in one of them is: ")
	for _, text := range append(pasted, pluginBlock, stanza) {
		_, diagnostics := hclparse.NewParser().ParseHCL([]byte(text), "x")
		must.False(t, diagnostics.HasErrors(), must.Sprint(text, diagnostics))
	}
	must.NoError(t, new(acl).add("p", stanza, nil))
}

func TestOneFindingOnce(t *testing.T) {
	var r report
	r.problem("a", "do b", "c is %s", "d")
	r.problem("a", "do b", "c is d")
	r.add(finding{Status: statusProblem, About: "a", Message: "no e", Fix: "add:", Paste: "e {\n  f = 1\n}\n"})
	must.SliceLen(t, 2, r.findings)
	var out strings.Builder
	must.NoError(t, (&checker{report: r}).print(&out))
	must.Eq(t, "problem  a: c is d; do b\nproblem  a: no e; add:\n         e {\n           f = 1\n         }\n",
		out.String())
	var all []located
	for _, block := range []string{"one", "two", "one"} {
		q := located{about: "vault, " + block, aclPath: "kv/a"}
		q.Block = block
		all = merge(all, q)
	}
	must.SliceLen(t, 1, all)
	must.Eq(t, "vault, one, two", all[0].about)
}

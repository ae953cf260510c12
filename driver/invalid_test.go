package driver

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"
)

// with is a template that is right, with more in it.
func with(more string) string { return templateHCL("local/x", "x", more) }

// Each of these is refused before anybody is asked, with one line that names the field.
var invalid = map[string]struct{ config, says string }{
	"kill_timeout is no duration": {`kill_timeout = "soon"`, `kill_timeout "soon" is not a duration such as "30s"`},
	"kill_timeout is negative":    {`kill_timeout = "-5s"`, `kill_timeout "-5s" is not a duration`},
	"kill_signal is unknown": {`kill_signal = "SIGNOPE"`,
		`kill_signal "SIGNOPE" is not a signal: use a name such as "SIGHUP"`},

	"vault: name leads elsewhere": {`vault { name = "../x" }`,
		`vault "../x": name: use letters, digits, -, _ and ., which is not the first`},
	"vault: name is empty": {`vault { name = "" }`, `vault "": name: use letters`},
	"vault: two of one name": {"vault {}\nvault {}",
		`vault: two blocks are named "default": give each its own name`},
	"vault: two in the environment": {"vault {\nenv = true\n}\nvault {\nname = \"b\"\nenv = true\n}",
		`vault "b": env = true is set in vault "default" too`},
	"vault: unknown cluster": {`vault { cluster = "west" }`,
		`vault "default": cluster "west" is unknown: the operator has configured "default"`},
	"vault: no identity": {`vault { identity = "" }`,
		`vault "default": identity is empty: name the task's identity block`},
	"vault: change_mode is unknown": {`vault { change_mode = "script" }`,
		`vault "default": change_mode "script" is unknown: use "noop", "signal" or "restart"`},
	"vault: change_signal without use": {`vault { change_signal = "SIGHUP" }`,
		`vault "default": change_signal is set but change_mode is not "signal"`},
	"vault: change_signal is missing": {`vault { change_mode = "signal" }`,
		`vault "default": change_signal is missing: name a signal such as "SIGHUP"`},
	"vault: change_signal is unknown": {"vault {\nchange_mode = \"signal\"\nchange_signal = \"HUP\"\n}",
		`vault "default": change_signal "HUP" is not a signal`},

	"template: no destination": {`template { data = "x" }`,
		`template number 1: destination is missing: name a file such as "secrets/app.env"`},
	"template: destination outside": {templateHCL("../x", "x", ""),
		`template "../x": destination: path "../x" is not below the task's directory`},
	"template: destination is Nomad's": {templateHCL("/private/x", "x", ""),
		`template "/private/x": destination: private/ is Nomad's own`},
	"template: one destination twice": {templateHCL("local/x", "x", "") + templateHCL("/local/../local/x", "y", ""),
		`template "/local/../local/x": destination: template "local/x" has the same: choose another`},
	"template: destination of the token": {"vault {\nfile = true\n}\n" + templateHCL("secrets/vault_token", "x", ""),
		`template "secrets/vault_token": destination: vault "default" puts its token there`},
	"template: neither data nor source": {`template { destination = "local/x" }`,
		`template "local/x": neither data nor source is set`},
	"template: data and source": {with(`source = "local/y"`),
		`template "local/x": both data and source are set: keep one`},
	"template: no such source": {"template {\ndestination = \"local/x\"\nsource = \"local/y\"\n}",
		`template "local/x": source "local/y": no such file or directory`},
	"template: source outside": {"template {\ndestination = \"local/x\"\nsource = \"../y\"\n}",
		`template "local/x": source: path "../y" is not below the task's directory`},
	"template: unknown vault": {with(`vault = "west"`),
		`template "local/x": vault = "west": the task has no vault block with that name`},
	"template: perms is no mode": {with(`perms = "rw"`),
		`template "local/x": perms "rw" is not an octal file mode such as "0600"`},
	"template: perms with special bits": {with(`perms = "4755"`),
		`template "local/x": perms "4755" is not an octal file mode`},
	"template: uid below -1": {with(`uid = -2`), `template "local/x": uid and gid are numbers from 0`},
	"template: gid below -1": {with(`gid = -2`), `template "local/x": uid and gid are numbers from 0`},
	"template: splay is no duration": {"template {\ndestination = \"local/x\"\ndata = \"x\"\nsplay = \"5\"\n}",
		`template "local/x": splay "5" is not a duration`},
	"template: wait.min is no duration": {with(`wait { min = "x" }`),
		`template "local/x": wait.min "x" is not a duration`},
	"template: wait.max is no duration": {with(`wait { max = "x" }`),
		`template "local/x": wait.max "x" is not a duration`},
	"template: wait.max before wait.min": {with("wait {\nmin = \"9s\"\nmax = \"8s\"\n}"),
		`template "local/x": wait.max 8s is shorter than wait.min 9s`},
	"template: poll_interval is none": {with(`poll_interval = "often"`),
		`template "local/x": poll_interval "often" is not a duration`},
	"template: poll_interval is short": {with(`poll_interval = "4s"`),
		`template "local/x": poll_interval 4s is below the 5s that this node's operator allows (min_poll_interval)`},
	"template: change_mode is unknown": {with(`change_mode = "reload"`),
		`template "local/x": change_mode "reload" is unknown: use "noop", "signal", "script" or "restart"`},
	"template: a signal for env": {templateHCL("local/x", "A=1", "env = true\n"+onSignal),
		`template "local/x": change_mode "signal" with env = true: a running process cannot see a new environment; use "restart"`},
	"template: change_signal without use": {with(`change_signal = "SIGHUP"`),
		`template "local/x": change_signal is set but change_mode is not "signal"`},
	"template: change_signal is missing": {with(`change_mode = "signal"`),
		`template "local/x": change_signal is missing`},
	"template: change_signal is unknown": {with("change_mode = \"signal\"\nchange_signal = \"SIGHOP\""),
		`template "local/x": change_signal "SIGHOP" is not a signal`},
	"template: script without its block": {with(`change_mode = "script"`),
		`template "local/x": change_mode "script" and a change_script block go together`},
	"template: a script without its mode": {with(`change_script { command = "/bin/x" }`),
		`template "local/x": change_mode "script" and a change_script block go together`},
	"template: script without a command": {with("change_mode = \"script\"\nchange_script { command = \"\" }"),
		`template "local/x": change_script.command is empty`},
	"template: script's timeout is none": {with("change_mode = \"script\"\nchange_script {\ncommand = \"/x\"\ntimeout " +
		"= \"x\"\n}"), `template "local/x": change_script.timeout "x" is not a duration`},
	"template: script without any time": {with("change_mode = \"script\"\nchange_script {\ncommand = \"/x\"\ntimeout " +
		"= \"0s\"\n}"), `template "local/x": change_script.timeout is zero`},
	"template: delimiter that never ends": {templateHCL("local/x", "<< x",
		"left_delimiter = \"<<\"\nright_delimiter = \">>\""), `"local/x": line 1`},
	"template: a function that is none": {templateHCL("local/x", "{{ sekret \"x\" }}", ""),
		`parse template "local/x": line 1: function "sekret" not defined`},
}

func TestInvalidConfigFailsAtOnceAndNamesTheField(t *testing.T) {
	for name, test := range invalid {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				began := time.Now()
				err := h.refused(test.config)
				must.StrContains(t, err.Error(), test.says)
				must.False(t, structs.IsRecoverable(err))
				must.Zero(t, time.Since(began))
				must.Zero(t, h.Calls(""))
				must.SliceEmpty(t, h.inner.did())
			})
		})
	}
}

func TestUnusualValuesAreAccepted(t *testing.T) {
	for name, config := range map[string]string{
		"a signal in small letters": "kill_signal = \"sigint\"\n" +
			with("change_mode = \"signal\"\nchange_signal = \"sighup\""),
		"a poll interval at the floor":          with(`poll_interval = "5s"`),
		"any poll interval for once":            with("once = true\npoll_interval = \"1s\""),
		"wait with its own maximum":             with("wait {\nmin = \"0s\"\nmax = \"0s\"\n}"),
		"the same file name in two places":      templateHCL("local/x", "x", "") + templateHCL("secrets/x", "x", ""),
		"a destination in the task's words":     templateHCL("/secrets/x", "x", ""),
		"a token file of a block with a name":   "vault {\nname = \"b-2\"\nrole = \"app\"\nfile = true\n}",
		"a source that is empty":                "template {\ndestination = \"local/x\"\nsource = \"local/empty\"\n}",
		"a source in the shared directory":      "template {\ndestination = \"local/x\"\nsource = \"/alloc/shared.tpl\"\n}",
		"no blocks, as with the wrapped driver": "",
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.put("web/local/empty", "")
				h.put("alloc/shared.tpl", "x")
				r := h.start(config)
				r.stop()
			})
		})
	}
}

func TestDeniedUserIsRefusedByNameAndByNumberWithAGroupOrWithout(t *testing.T) {
	for _, user := range []string{"root", "0", "0:0", "root:daemon", "00"} {
		t.Run(user, func(t *testing.T) {
			bubble(t, func(h *host) {
				h.config.DeniedUsers = []string{"root"}
				must.NoError(t, h.Configure(h.config))
				cfg := h.job("")
				cfg.User = user
				_, _, err := h.StartTask(cfg)
				must.ErrorContains(t, err, `user "`+user+`" is not allowed: this node's operator denies it (denied_users)`)
				must.False(t, structs.IsRecoverable(err))
				h.nothingLeft()
			})
		})
	}
}

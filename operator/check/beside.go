package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"nomad-driver-vault/driver/render"
)

// checkBeside looks at what stands beside the config block, and does not fit it.
func (c *checker) checkBeside(about string, task *nomad.Task, asked render.Asked) {
	if len(asked.Nomad) > 0 && !hasNomadToken(task) {
		c.add(finding{Status: statusProblem, About: about, Fix: "add to the task:", Paste: "identity { file = true }",
			Message: fmt.Sprintf("%s: Nomad's task API wants the task's own token, even where ACLs are off",
				strings.Join(asked.Nomad, ", "))})
	}
	if len(asked.OnDisk) > 0 {
		c.warn(about, "write them below secrets/, which is in memory",
			"%s: the file with secrets of Vault is on the node's disk", strings.Join(asked.OnDisk, ", "))
	}
	if n := len(task.Templates); n > 0 {
		c.warn(about, "move them into config", "template blocks outside of config: %d. The agent renders them itself, with "+
			"other leases than those of config", n)
	}
	if within := *task.KillTimeout; within != 5*time.Second && task.Config["kill_timeout"] == nil {
		c.warn(about, fmt.Sprintf("write into config, too: kill_timeout = %q", within), "Nomad does not tell drivers the "+
			"task's kill_timeout: when its secrets change, the process has 5s to end")
	}
	if task.KillSignal != "" && task.Config["kill_signal"] == nil {
		c.warn(about, fmt.Sprintf("write into config, too: kill_signal = %q", task.KillSignal), "Nomad does not tell "+
			"drivers the task's kill_signal: when its secrets change, the process gets another")
	}
}

// hasNomadToken reports whether the task is given the identity that Nomad itself understands.
func hasNomadToken(task *nomad.Task) bool {
	given := func(i *nomad.WorkloadIdentity) bool {
		return i != nil && (i.Name == "" || i.Name == "default") && (i.File || i.Env)
	}
	return given(task.Identity) || slices.ContainsFunc(task.Identities, given)
}

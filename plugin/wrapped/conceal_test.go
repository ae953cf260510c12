package wrapped

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

func TestValuesOfATaskAreNotLogged(t *testing.T) {
	var logged bytes.Buffer
	c := newConcealer()
	log := c.log(hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &logged, DisableTime: true})).Named("exec")
	first := c.Conceal(map[string]string{"PASSWORD": "hunter2"})
	second := c.Conceal(map[string]string{"PASSWORD": "hunter3"})
	options := struct{ Args []string }{[]string{"hunter3"}}
	log.With("task", "hunter2").Info("starting task", "driver_cfg", hclog.Fmt("%+v", options))
	log.Debug("applied labels", "labels", map[string]string{"a": "hunter2"}, "pid", 7)
	log.Error("failed", "error", errors.New(`exec: "hunter2": not found`))
	second()
	log.Warn("later", "a", "hunter2", "b", "hunter3")
	first()
	log.Trace("last", "a", "hunter2")
	must.Eq(t, `[INFO]  exec: starting task: task="$(PASSWORD)" driver_cfg="{Args:[$(PASSWORD)]}"
[DEBUG] exec: applied labels: labels="map[a:$(PASSWORD)]" pid=7
[ERROR] exec: failed: error="exec: \"$(PASSWORD)\": not found"
[WARN]  exec: later: a="$(PASSWORD)" b=hunter3
[TRACE] exec: last: a=hunter2
`, logged.String())
}

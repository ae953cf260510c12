package main

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestBars(t *testing.T) {
	bars, err := read(strings.NewReader(`goos: linux
BenchmarkLatency-2            10  99 ns/op  26.0 door-added-p50-µs  170.0 plain-p50-µs
BenchmarkThroughput/small-2   10  99 ns/op  0.84 door-of-plain  0.86 door-unscrubbed-of-plain  9000 plain-calls/s
BenchmarkPgbench/select-2     10  99 ns/op  0.96 of-direct
PASS
`))
	must.NoError(t, err)
	must.Eq(t, []bar{{"Throughput/small door, of plain", 0.84}, {"Throughput/small door-unscrubbed, of plain", 0.86},
		{"Pgbench/select, of direct", 0.96}}, bars)
	var drawn strings.Builder
	must.NoError(t, draw(&drawn, bars))
	must.Eq(t, 3, strings.Count(drawn.String(), "#4178be"))
	must.StrContains(t, drawn.String(), ">0.96</text>")
}

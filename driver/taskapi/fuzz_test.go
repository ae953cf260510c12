package taskapi

import (
	"reflect"
	"testing"

	"github.com/shoenig/test/must"
)

// FuzzAnswer reads any answer of the task API. Whatever it says, each question has an answer or an error, and no entry
// of a list is missing: templates look into all of them.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`[{"Namespace":"default","Services":[{"ServiceName":"web","Tags":["b","a"]}]}]`, `[{"Services":[null]}]`, `[null]`,
		`[{"ID":"1","ServiceName":"web","Address":"10.0.0.1","Port":8080,"Tags":["b","a"]}]`, `[]`, `null`, `{}`,
		`{"Path":"nomad/jobs","Items":{"k":"v"},"ModifyIndex":7}`, `[{"Path":"nomad/jobs","ModifyIndex":7}]`, `{"Items":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, q := range []question{servicesQuery{}, ServiceQuery{Name: "web"}, VariableQuery{Path: "x"}, variablesQuery{}} {
			answer, err := q.decode(body)
			if err != nil {
				continue
			}
			list := reflect.ValueOf(answer)
			must.True(t, list.IsValid())
			for i := 0; list.Kind() == reflect.Slice && i < list.Len(); i++ {
				must.False(t, list.Index(i).IsNil())
			}
		}
	})
}

//go:build !race

package template

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// What a template takes of memory and time is measured without the race detector, which takes many times that: `make
// unit` runs these tests apart.

// Each of these would take gigabytes, a stack without end, or for ever: the plugin and with it all tasks of the node.
func TestTemplateWithoutEndFailsAlone(t *testing.T) {
	const tooLarge = "it takes more than the 67108864 bytes that the templates of one task may: give it less"
	const tooMuch = "the result has more than the 16777216 bytes allowed: split the template"
	double := func(f string) string {
		return `{{ $x := "0123456789abcdef" }}` + strings.Repeat(`{{ $x = `+f+` $x $x }}`, 40)
	}
	dict := `{{ $d := sprig_dict }}{{ $_ := sprig_set $d "self" $d }}`
	deepList := `{{ $x := sprig_list }}{{ range loop 5000 }}{{ $x = sprig_list $x }}{{ end }}`
	before := memory()
	list := func(n string) string { return `(sprig_splitList "," (sprig_repeat ` + n + ` "a,"))` }
	for name, c := range map[string]struct{ text, says string }{
		"a value twice, and so on": {double("print"), "print: " + tooLarge},
		"a value twice, in an action": {strings.Repeat(`{{ with print . . "xxxxxxxxxxxxxxxx" }}`, 40) +
			strings.Repeat("{{ end }}", 40), "print: " + tooLarge},
		"a value twice, in a template": {`{{ define "a" }}{{ template "a" (print . .) }}{{ end }}{{ template "a" "0123456789abcdef" }}`, "print: " + tooLarge},
		"a value twice, by a method":   {`{{ $t := sprig_toDate "2006-01-02" "2022-12-22" }}{{ $x := "2" }}{{ range loop 60 }}{{ $x = $t.Format (printf "%[1]s%[1]s" $x) }}{{ end }}`, tooLarge},
		"a method in parentheses": {`{{ $t := sprig_toDate "2006-01-02" "2022-12-22" }}{{ ` +
			strings.Repeat(`$t.Format (`, 60) + `"2"` + strings.Repeat(")", 60) + ` | len }}`, tooLarge},
		"a list twice, printed":             {double("sprig_list") + `{{ $x }}`, tooMuch},
		"a list twice, as JSON":             {double("sprig_list") + `{{ $x | toJSON }}`, "toJSON: " + tooLarge},
		"a list twice, in an error":         {double("sprig_list") + `{{ eq $x $x }}`, tooMuch},
		"a list twice, piped into an error": {double("sprig_list") + `{{ $x | ne "a" }}`, tooMuch},
		"a list twice, as a number":         {double("sprig_list") + `{{ sprig_int $x }}`, "sprig_int: " + tooLarge},
		"a list twice, in a scratch":        {double("sprig_list") + `{{ scratch.Set "x" $x }}{{ scratch }}`, tooMuch},
		"a map in itself, printed":          {dict + `{{ $d }}`, tooMuch},
		"a map in itself, in an error":      {dict + `{{ eq $d $d }}`, tooMuch},
		"a map in itself, as YAML":          {dict + `{{ toYAML $d }}`, "toYAML: " + tooLarge},
		"a map in itself, as a key":         {dict + `{{ sprig_dict $d "x" }}`, "sprig_dict: " + tooLarge},
		"a map in itself, merged":           {dict + `{{ sprig_merge $d $d }}`, "sprig_merge: " + tooLarge},
		"a scratch in itself":               {`{{ scratch.MapSet "m" "k" 1 }}{{ scratch.MapSet "m" "k" (scratch.Get "m") }}{{ scratch.Get "m" }}`, tooLarge},
		"a list of lists, printed":          {deepList + `{{ $x }}`, tooMuch},
		"a list of lists, as JSON":          {deepList + `{{ toJSON $x }}`, "toJSON: " + tooLarge},
		"a template that calls itself": {"\n{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}",
			"line 2: more than 512 templates within each other: does one call itself?"},
		"a template that calls itself twice": {`{{ define "a" }}{{ template "a" . }}{{ template "a" . }}{{ end }}{{ template "a" "x" }}`, "line 1: more than 512 templates"},
		"two templates that call each other": {`{{ define "a" }}{{ template "b" }}{{ end }}{{ define "b" }}{{ if true }}{{ template "a" 1 }}{{ end }}{{ end }}{{ template "a" }}`, "line 1: more than 512 templates"},
		"a template that calls itself often": {`{{ define "a" }}{{ range loop 99 }}{{ template "a" }}{{ end }}{{ end }}{{ template "a" }}`, "line 1: more than 512 templates"},
		"a deep template that calls itself": {`{{ define "a" }}` + strings.Repeat("{{ if 1 }}", 200) +
			`{{ template "a" }}` + strings.Repeat("{{ end }}", 200) +
			`{{ end }}{{ template "a" }}`, "line 1: more than 512 templates"},
		"many calls": {`{{ define "a" }}{{ end }}{{ range loop 600000 }}{{ template "a" }}{{ end }}`,
			"line 1: more than 1048576 turns of range and calls of templates in one template"},
		"many turns": {`{{ $l := loop 1000 }}{{ range $l }}{{ range $l }}{{ range $l }}{{ end }}{{ end }}{{ end }}`,
			"line 1: more than 1048576 turns of range and calls of templates in one template"},
		"many turns of a number": {`{{ range 999999999999 }}{{ end }}`,
			"line 1: more than 1048576 turns of range"},
		"much that is printed": {`{{ $s := sprig_repeat 1000000 "x" }}{{ range loop 1000 }}{{ $s }}{{ end }}`,
			tooMuch},
		"much text": {`{{ range loop 100000 }}` + strings.Repeat("0123456789", 1000) + `{{ end }}`,
			tooMuch},
		"much text of a template": {`{{ range loop 10000 }}{{ template "a" }}{{ end }}{{ define "a" }}` +
			strings.Repeat("0123456789", 1000) + `{{ end }}`, tooMuch},
		"much in a scratch": {`{{ range loop 200 }}{{ scratch.MapSet "m" (print .) (sprig_repeat 10000000 "x") }}{{ end }}`,
			"sprig_repeat: " + tooLarge},
		"many keys in a scratch": {`{{ range loop 1000000 }}{{ scratch.MapSet "m" (printf "%0999d" .) . }}{{ end }}`,
			tooLarge},
		"many keys in a map": {`{{ $d := sprig_dict }}{{ range loop 1000000 }}{{ $_ := sprig_set $d (printf "%0999d" .) . }}{{ end }}`, tooLarge},
		"a list that grows": {`{{ $l := sprig_list }}{{ range loop 1000000 }}{{ $l = sprig_append $l . }}{{ end }}`,
			"sprig_append: " + tooLarge},
		"much in a list":     {`{{ $l := sprig_list }}{{ range loop 100 }}{{ $l = sprig_append $l (sprig_repeat 2000000 (print .)) }}{{ end }}`, tooLarge},
		"a count":            {`{{ sprig_repeat 1073741824 "x" }}`, "sprig_repeat: " + tooLarge},
		"a count below zero": {`{{ sprig_repeat -1 "x" }}`, "sprig_repeat: strings: negative Repeat count"},
		"spaces":             {`{{ indent 1073741824 "x" }}`, "indent: " + tooLarge},
		"spaces on many lines": {`{{ sprig_indent 10000 (sprig_repeat 10000 "\n") }}`,
			"sprig_indent: " + tooLarge},
		"spaces on new lines": {`{{ sprig_nindent 1073741824 "x" }}`, "sprig_nindent: " + tooLarge},
		"numbers":             {`{{ sprig_until 1000000000 | len }}`, "sprig_until: " + tooLarge},
		"numbers by steps": {`{{ sprig_untilStep 0 1000000000 1 | len }}`,
			"sprig_untilStep: " + tooLarge},
		"numbers past the largest": {`{{ sprig_untilStep 0 9223372036854775807 9223372036854775806 | len }}`,
			"sprig_untilStep: " + tooLarge},
		"numbers down": {`{{ sprig_seq 1 -1000000000 | len }}`, "sprig_seq: " + tooLarge},
		"numbers to the largest": {`{{ sprig_seq 9223372036854775806 9223372036854775807 }}`,
			"sprig_seq: " + tooLarge},
		"a replacement of nothing":          {`{{ replaceAll "" (sprig_repeat 1000000 "x") (sprig_repeat 1000000 "y") | len }}`, "replaceAll: " + tooLarge},
		"a replacement":                     {`{{ sprig_replace "y" (sprig_repeat 1000000 "x") (sprig_repeat 1000000 "y") | len }}`, "sprig_replace: " + tooLarge},
		"a replacement by an expression":    {`{{ regexReplaceAll "y" (sprig_repeat 1000000 "x") (sprig_repeat 1000000 "y") | len }}`, "regexReplaceAll: " + tooLarge},
		"a replacement with what was there": {`{{ sprig_regexReplaceAll ".*" (sprig_repeat 1000000 "y") (sprig_repeat 100 "$0") | len }}`, tooLarge},
		"a literal replacement":             {`{{ sprig_regexReplaceAllLiteral "y" (sprig_repeat 1000000 "y") (sprig_repeat 1000000 "x") | len }}`, tooLarge},
		"an expression and a text": {`{{ regexMatch (sprig_repeat 15 "(x+x+)+y") (sprig_repeat 8000000 "x") }}`,
			"regexMatch: " + tooLarge},
		"an expression of repetitions": {`{{ regexMatch (sprig_repeat 2000 "x{1000}") "x" }}`,
			"regexMatch: " + tooLarge},
		"an expression of many groups": {`{{ sprig_regexFind (sprig_repeat 4000 "(.?)") (sprig_repeat 100000 "x") }}`,
			tooLarge},
		"a long expression": {`{{ regexMatch (sprig_repeat 1000000 "[a-z]") "x" }}`,
			"regexMatch: " + tooLarge},
		"matches": {`{{ sprig_regexFindAll "" (sprig_repeat 10000000 "x") -1 | len }}`,
			tooLarge},
		"a separator": {`{{ sprig_join (sprig_repeat 1000000 "x") ` + list("1000") + ` | len }}`,
			"sprig_join: " + tooLarge},
		"a separator of strings": {`{{ join (sprig_repeat 1000000 "x") ` + list("1000") + ` | len }}`,
			"join: " + tooLarge},
		"pieces": {`{{ split "" (sprig_repeat 10000000 "x") | len }}`, "split: " + tooLarge},
		"pieces by number": {`{{ sprig_split "" (sprig_repeat 1000000 "x") | len }}`,
			"sprig_split: " + tooLarge},
		"pieces by name": {`{{ splitToMap "," "=" (sprig_repeat 1000000 "x,") | len }}`,
			"splitToMap: " + tooLarge},
		"new lines": {`{{ sprig_wrapWith 1 (sprig_repeat 1000000 "x") (sprig_repeat 1000000 "y") | len }}`, tooLarge},
		"a width": {`{{ printf "` + strings.Repeat("%1000000d", 100) + `" 1 | len }}`,
			"printf: " + tooLarge},
		"a width that is an argument": {`{{ printf (sprig_repeat 100 "%[1]*[2]d") 1000000 1 | len }}`,
			"printf: " + tooLarge},
		"an argument again and again": {`{{ printf (sprig_repeat 100 "%[1]s") (sprig_repeat 1000000 "x") | len }}`,
			"printf: " + tooLarge},
		"characters to escape":  {`{{ sprig_repeat 15000000 "\x01" | toJSON | len }}`, "toJSON: " + tooLarge},
		"a number that is none": {`{{ sprig_repeat 15000000 "\x01" | parseInt }}`, "parseInt: " + tooLarge},
		"a long error": {`{{ sprig_repeat 1000000 "\x01" | parseInt }}`,
			"parseInt: an error with more than the 16384 bytes that are shown"},
		"a long question": {`{{ file (sprig_repeat 5000000 "\x01") }}`,
			"file: an error with more than the 16384 bytes that are shown"},
		"small values of JSON": {`{{ print "[[]" (sprig_repeat 3000000 ",[]") "]" | parseJSON | len }}`,
			"parseJSON: " + tooLarge},
		"small values of YAML": {`{{ print "[a" (sprig_repeat 500000 ",a") "]" | parseYAML | len }}`,
			"parseYAML: " + tooLarge},
		"many names before each line":          {`{{ $d := sprig_dict }}{{ range loop 100 }}{{ $_ := sprig_set $d (print .) (sprig_dict "a" 1) }}{{ end }}{{ toTOML (sprig_dict (sprig_repeat 1000000 "x") $d) | len }}`, "toTOML: " + tooLarge},
		"many spaces before each line of JSON": {`{{ $x := 1 }}{{ range loop 900 }}{{ $x = sprig_list $x }}{{ end }}{{ range loop 99 }}{{ $l := sprig_list $x $x $x $x $x $x $x $x $x }}{{ toJSONPretty (sprig_list $l $l $l $l $l) | len }}{{ end }}`, "toJSONPretty: " + tooLarge},
		"many spaces before each line of YAML": {`{{ $x := sprig_repeat 1000000 "\n" }}{{ range loop 900 }}{{ $x = sprig_list $x }}{{ end }}{{ toYAML $x | len }}`, "toYAML: " + tooLarge},
		"a map for each part of a path": {`{{ explodeMap (sprig_dict (sprig_repeat 100000 "a/") 1) | len }}`,
			"explodeMap: " + tooLarge},
		"each with each": {`{{ sprig_uniq (sprig_splitList " " (sprig_seq 100000)) | len }}`,
			"sprig_uniq: " + tooLarge},
		"each with each of another": {`{{ $l := sprig_splitList " " (sprig_seq 50000) }}{{ $m := sprig_rest $l }}{{ containsAll $m $l }}`, "containsAll: " + tooLarge},
		"a version": {`{{ sprig_semverCompare (sprig_repeat 1000000 ">1,") "1.0.0" }}`,
			"sprig_semverCompare: " + tooLarge},
		"a long key to sign with": {`{{ sprig_genCAWithKey "x" 1 (sprig_repeat 1000000 "x") }}`,
			"sprig_genCAWithKey: " + tooLarge},
		"files": {`{{ range loop 9 }}{{ scratch.Set (print .) (file "local/15M") }}{{ end }}`,
			"file: " + tooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Root: dirWithFile(t)}
			runtime.GC()
			began := time.Now()
			_, err := render(t, Spec{Data: c.text}, in)
			must.ErrorContains(t, err, c.says)
			must.False(t, ours.MatchString(err.Error()), must.Sprint(err))
			must.Less(t, 256<<20, memory()-before)
			must.Less(t, time.Minute, time.Since(began))
		})
	}
}

// A template's text can come from a file that the task has made, and a parser's stack and trees grow with it.
func TestTextWithoutEndIsRefused(t *testing.T) {
	before := memory()
	for name, c := range map[string]struct{ text, says string }{
		"actions in actions":      {strings.Repeat("{{if 1}}", 2<<20), "more than 1048576 bytes in their actions"},
		"as many as there may be": {strings.Repeat("{{if 1}}", maxBranches), `unexpected EOF`},
		"one more": {strings.Repeat("{{- with 1}}", maxBranches+1),
			"more than 10000 of if, with, range and block"},
		"and with their ends": {strings.Repeat("{{if 1}}", maxBranches) + strings.Repeat("{{end}}", maxBranches),
			"more than 200 actions within each other"},
		"behind else": {strings.Repeat("{{if 1}}{{else  if 1}}", maxBranches/2+1),
			"more than 10000 of if, with, range and block"},
		"one else after another": {"{{if 1}}" + strings.Repeat("{{else if 1}}", 300) + "{{end}}",
			"more than 200 actions within each other"},
		"small actions": {strings.Repeat("{{.}}", 2<<20), "more than 1048576 bytes in their actions"},
		"small words": {"{{ print" + strings.Repeat(" 1", 2<<20) + " }}",
			"more than 1048576 bytes in their actions"},
		"after a quotation": {`{{ "}}"` + strings.Repeat("|print 1", 1<<20) + " }}",
			"more than 1048576 bytes in their actions"},
		"parentheses": {"{{ " + strings.Repeat("(", 500000) + strings.Repeat(")", 500000) + " }}",
			"max expression depth"},
		"other delimiters": {strings.Repeat("<.>", 2<<20), "more than 1048576 bytes in their actions"},
	} {
		t.Run(name, func(t *testing.T) {
			runtime.GC()
			s := Spec{Name: "x", Data: c.text}
			if strings.HasPrefix(c.text, "<") {
				s.LeftDelim, s.RightDelim = "<", ">"
			}
			_, err := Parse(s)
			must.ErrorContains(t, err, `parse template "x": `)
			must.ErrorContains(t, err, c.says)
			must.Less(t, 256<<20, memory()-before)
		})
	}
	for name, text := range map[string]string{
		"much that is in no action":    strings.Repeat("0123456789abcdef", 1<<20) + `{{ "x" }}`,
		"many templates":               strings.Repeat(`{{ define "a" }}{{ end }}`, 20000),
		"many small actions":           strings.Repeat("{{.}}", 100<<10),
		"many words":                   "{{ print" + strings.Repeat(" 1", 500<<10) + " }}",
		"templates that call the next": chain(10000),
	} {
		t.Run(name, func(t *testing.T) {
			runtime.GC()
			began := time.Now()
			_, err := Parse(Spec{Name: "x", Data: text})
			must.NoError(t, err)
			must.Less(t, 256<<20, memory()-before)
			must.Less(t, time.Minute, time.Since(began))
		})
	}
}

func chain(n int) string {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, `{{ define "%d" }}{{ template "%d" }}{{ end }}`, i, i+1)
	}
	return text.String()
}

// memory is what heap and stacks have had at most.
func memory() int64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapSys + stats.StackSys)
}

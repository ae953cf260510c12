package convert

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// A jobspec is what is converted.
type jobspec struct {
	name, audience string
	text           []byte
}

// A finding is what a person has to decide.
type finding struct {
	line int
	says string
}

// A job is a jobspec while it is converted.
type job struct {
	jobspec
	tasks    []*task
	edits    []edit
	findings []finding
	written  []written // dynamic blocks in their order of writing
}

// rewrite returns the jobspec as it is for this plugin, and what a person has to decide. A jobspec in which nothing is
// to be converted is returned as it is.
func rewrite(spec jobspec) ([]byte, []finding, error) {
	windows := bytes.Contains(spec.text, []byte("\r\n"))
	j := job{jobspec: spec}
	j.text = bytes.ReplaceAll(j.text, []byte("\r\n"), []byte("\n"))
	if err := j.read(); err != nil {
		return nil, nil, err
	}
	for j.expand() {
		if err := j.read(); err != nil {
			return nil, nil, err
		}
	}
	for _, t := range j.tasks {
		t.convert()
	}
	j.moveInherited()
	j.moveNeighbours()
	j.lookAtDrivers()
	made := apply(j.text, j.edits)
	if windows {
		made = bytes.ReplaceAll(made, []byte("\n"), []byte("\r\n"))
	}
	slices.SortStableFunc(j.findings, func(a, b finding) int { return cmp.Compare(a.line, b.line) })
	return made, j.findings, nil
}

func (j *job) find(at hcl.Range, format string, args ...any) {
	j.findings = append(j.findings, finding{j.original(at.Start.Line), fmt.Sprintf(format, args...)})
}

// read finds the tasks. The error is one line.
func (j *job) read() error {
	if strings.HasPrefix(strings.TrimSpace(string(j.text)), "{") {
		return fmt.Errorf("parse %s: it is JSON: only a jobspec in HCL can be converted", j.name)
	}
	parsed, diagnostics := hclsyntax.ParseConfig(j.text, j.name, hcl.InitialPos)
	if diagnostics.HasErrors() {
		return errors.New("parse " + strings.Join(strings.Fields(diagnostics[0].Error()), " "))
	}
	body, _ := parsed.Body.(*hclsyntax.Body)
	j.tasks = nil
	i := slices.IndexFunc(body.Blocks, func(b *hclsyntax.Block) bool { return b.Type == "job" })
	if i < 0 {
		return fmt.Errorf("parse %s: it has no job block", j.name)
	}
	top := scope{body: body.Blocks[i].Body, computed: []string{"var", "local"}}
	top.vault = first(top.body, "vault")
	top.secrets = blocksOf(top.body, "secret")
	for _, s := range top.inner("task") {
		j.tasks = append(j.tasks, newTask(j, top, s))
	}
	for _, group := range top.inner("group") {
		group.vault = cmp.Or(first(group.body, "vault"), top.vault)
		for _, s := range group.inner("task") {
			j.tasks = append(j.tasks, newTask(j, group, s))
		}
	}
	return nil
}

// A scope is the body of a job, a group or a task, and what holds in it.
type scope struct {
	body     *hclsyntax.Body
	vault    *hclsyntax.Block   // which its tasks have unless they have their own
	secrets  []*hclsyntax.Block // which its tasks have beside their own
	computed []string           // names that nomad job run puts values in for
}

// inner returns the scopes of the blocks of a kind, those of dynamic blocks among them.
func (s scope) inner(kind string) (all []scope) {
	for _, b := range s.body.Blocks {
		switch {
		case b.Type == kind:
			all = append(all, scope{body: b.Body, vault: s.vault, secrets: s.secrets, computed: s.computed})
		case b.Type == "dynamic" && slices.Equal(b.Labels, []string{kind}):
			if content := first(b.Body, "content"); content != nil {
				all = append(all, scope{body: content.Body, vault: s.vault, secrets: s.secrets,
					computed: append(slices.Clone(s.computed), iterator(b))})
			}
		}
	}
	return all
}

// iterator is the name that a dynamic block gives the value of a turn.
func iterator(dynamic *hclsyntax.Block) string {
	if named := dynamic.Body.Attributes["iterator"]; named != nil {
		return hcl.ExprAsKeyword(named.Expr)
	}
	return dynamic.Labels[0]
}

func first(body *hclsyntax.Body, kind string) *hclsyntax.Block {
	if all := blocksOf(body, kind); len(all) > 0 {
		return all[0]
	}
	return nil
}

func blocksOf(body *hclsyntax.Body, kind string) (all []*hclsyntax.Block) {
	for _, b := range body.Blocks {
		if b.Type == kind {
			all = append(all, b)
		}
	}
	return all
}

// moveInherited takes a vault block of job or group away from where tasks have inherited it, if one of them is
// converted. The others get a copy, and are as they were.
func (j *job) moveInherited() {
	moved := map[*hclsyntax.Block]bool{}
	for _, t := range j.tasks {
		if t.converted && t.own == nil && !moved[t.vault] {
			moved[t.vault] = true
			j.remove(t.vault)
		}
	}
	for _, t := range j.tasks {
		if !t.converted && t.own == nil && moved[t.vault] {
			t.insert(j.cut(t.vault, nil))
		}
	}
}

// moveNeighbours has a group of which the network is made by a docker driver keep to one: Nomad takes no two.
func (j *job) moveNeighbours() {
	shared := map[*hclsyntax.Body]bool{}
	for _, t := range j.tasks {
		network := first(t.group, "network")
		if t.converted && t.driver == "docker" && network != nil && network.Body.Attributes["mode"] != nil {
			shared[t.group] = true
		}
	}
	for _, t := range j.tasks {
		if shared[t.group] && !t.converted && t.driver == "docker" && !t.usesVault() {
			t.setDriver()
		}
	}
}

// remove takes a block out of the file.
func (j *job) remove(b *hclsyntax.Block) {
	start, end := linesOf(j.text, b.Range())
	j.edits = append(j.edits, edit{start: start, end: end, lines: true})
}

// cut returns the lines of a block without their indent, with edits made in them.
func (j *job) cut(b *hclsyntax.Block, edits []edit) string {
	start, end := linesOf(j.text, b.Range())
	for i := range edits {
		edits[i].start -= start
		edits[i].end -= start
	}
	return indented(string(apply(j.text[start:end], edits)), indentOf(j.text, b.TypeRange.Start.Byte), "")
}

var driverAttribute = regexp.MustCompile(`\b(?:attr\.)?driver\.(docker|exec|raw_exec)\b`)

// lookAtDrivers names what asks the client for a driver that the job no longer uses.
func (j *job) lookAtDrivers() {
	left, used := map[string]bool{}, map[string]bool{}
	for _, t := range j.tasks {
		if t.renamed {
			left[t.driver] = true
		} else {
			used[t.driver] = true
		}
	}
	for _, m := range driverAttribute.FindAllSubmatchIndex(j.text, -1) {
		if name := string(j.text[m[2]:m[3]]); left[name] && !used[name] {
			at := hcl.Range{Start: hcl.Pos{Line: 1 + bytes.Count(j.text[:m[0]], []byte("\n"))}}
			j.find(at, "%s asks for Nomad's own driver: if the client has only this plugin, write driver.vault-%s",
				j.text[m[0]:m[1]], name)
		}
	}
}

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-vault/driver/config"
	"nomad-driver-vault/driver/render"
	"nomad-driver-vault/driver/template"
	"nomad-driver-vault/driver/vault"
	"nomad-driver-vault/operator"
	"nomad-driver-vault/plugin"
)

// docs/plugin-options.md and docs/task-options.md describe each option once:
//
//   - `name` - (default: `value`) - meaning
//
// The options of a block are indented below it. A default that depends on the driver's published name is followed by
// others, as in (default: `[]`, for `vault-exec`: `["root"]`), and options of one driver stand below a heading such as
// "## `vault-exec` only".

func TestDocsHaveEveryPluginOption(t *testing.T) {
	for _, wraps := range plugin.Drivers() {
		for _, name := range []string{"vault-" + wraps, wraps} {
			t.Run(name, func(t *testing.T) {
				must.Eq(t, specified(plugin.ConfigSpec(wraps, name)), documented(t, "docs/plugin-options.md", wraps, name))
			})
		}
	}
}

func TestDocsHaveEveryTaskOption(t *testing.T) {
	for _, wraps := range plugin.Drivers() {
		t.Run(wraps, func(t *testing.T) {
			must.Eq(t, specified(plugin.TaskConfigSpec(wraps)), documented(t, "docs/task-options.md", wraps, "vault-"+wraps))
		})
	}
}

// TestExampleOfAnAgentNamesEveryOption keeps the promise of example/agent.hcl, whose options may stand behind #.
func TestExampleOfAnAgentNamesEveryOption(t *testing.T) {
	text := page(t, "example/agent.hcl")
	for _, wraps := range plugin.Drivers() {
		for path := range specified(plugin.ConfigSpec(wraps, "vault-"+wraps)) {
			name := path[strings.LastIndex(path, ".")+1:]
			must.RegexMatch(t, regexp.MustCompile(`\b`+name+`\b`), text, must.Sprint("no ", path, " of vault-", wraps))
		}
	}
}

// TestPackagedConfigIsThatOfTheDocs takes the # away from what packages put into /etc/nomad.d, as an operator does.
func TestPackagedConfigIsThatOfTheDocs(t *testing.T) {
	const packaged = "deploy/package/nomad-driver-vault.hcl"
	agent, err := operator.ReadAgent([]string{packaged})
	must.NoError(t, err)
	must.Eq(t, operator.Agent{}, agent, must.Sprint("it says something before an operator has touched it"))
	_, blocks, _ := strings.Cut(page(t, packaged), "\n\n")
	blocks = regexp.MustCompile("(?m)^# ").ReplaceAllString(blocks, "")
	must.StrContains(t, section(t, "docs/install.md", "Tell the agent"), "\n\n"+blocks+"```\n")

	file := filepath.Join(t.TempDir(), "agent.hcl")
	must.NoError(t, os.WriteFile(file, []byte(blocks), 0o600))
	agent, err = operator.ReadAgent([]string{file})
	must.NoError(t, err)
	drivers := agent.Drivers(t.Context(), publishedBy)
	must.Len(t, 2, drivers)
	for _, d := range drivers {
		must.NoError(t, d.Err)
	}
}

// TestMigratedConfigIsAccepted reads each config block of docs/migration.md as the driver reads a job's.
func TestMigratedConfigIsAccepted(t *testing.T) {
	text := page(t, "docs/migration.md")
	blocks := regexp.MustCompile("(?s)```hcl\n(config \\{\n.*?)```").FindAllStringSubmatch(text, -1)
	must.GreaterEq(t, 8, len(blocks))
	for _, block := range blocks {
		accepted(t, block[1])
	}
}

// TestDoorsOfTheDocsAreAccepted does the same with the doors of docs/doors.md.
func TestDoorsOfTheDocsAreAccepted(t *testing.T) {
	text := section(t, "docs/doors.md", "What can be behind a door")
	blocks := regexp.MustCompile("(?s)```hcl\n(door .*?)```").FindAllStringSubmatch(text, -1)
	must.Len(t, 3, blocks)
	for _, block := range blocks {
		accepted(t, "config {\n vault {\n identity_file = \"private/vault.jwt\"\n}\n"+block[1]+"}\n")
	}
}

// accepted reads a config block as the driver reads a job's.
func accepted(t *testing.T, block string) {
	t.Helper()
	parsed, ok := hclutils.HclConfigToInterface(t, block).([]map[string]any)
	must.True(t, ok)
	parsed[0]["image"] = "busybox"
	_, conf, err := plugin.ReadTask(t.Context(), "docker", parsed[0], nil)
	must.NoError(t, err, must.Sprint(block))
	op := config.Operator{Clusters: []vault.Cluster{{Name: "default"}, {Name: "audit"}}, PollInterval: time.Minute,
		MinPollInterval: time.Second}
	if strings.Contains(block, "policies") { // of a cluster with token roles
		op.Clusters = []vault.Cluster{{Name: "default", Address: "https://vault.example.com:8200", Role: "nomad-cluster",
			TokenFile: "/etc/nomad.d/vault_token"}}
		op.Allow = config.Allow{"default": {"*": {"*"}}}
	}
	_, err = render.Review(op, &drivers.TaskConfig{Name: "x", Namespace: "default"}, conf)
	must.NoError(t, err, must.Sprint(block))
}

// TestDocsHaveEveryFlag compares the tables of flags with what -h prints.
func TestDocsHaveEveryFlag(t *testing.T) {
	text := page(t, "docs/setup-and-check.md") + page(t, "docs/operating.md")
	row := regexp.MustCompile("(?m)^\\| `-([\\w-]+)` \\| (?:`(.*?)`)? ?\\|")
	printed := regexp.MustCompile(`(?m)^  -([\w-]+)(?: \w+)?[\n\t](?:.*\(default "?(.*?)"?\)$)?`)
	for _, command := range program().Commands {
		name := command.Name
		t.Run(name, func(t *testing.T) {
			var help strings.Builder
			must.Zero(t, program().Run([]string{name, "-h"}, operator.Terminal{Out: &help, Err: &help}))
			_, table, _ := strings.Cut(text, "| flag of `"+name+"` |")
			table, _, _ = strings.Cut(table, "\n\n")
			must.Eq(t, flagsOf(printed.FindAllStringSubmatch(help.String(), -1)), flagsOf(row.FindAllStringSubmatch(table, -1)))
		})
	}
}

// flagsOf returns the defaults by the flags' names; that of a switch is not printed.
func flagsOf(found [][]string) map[string]string {
	all := map[string]string{}
	for _, f := range found {
		all[f[1]] = strings.TrimPrefix(f[2], "false")
	}
	return all
}

// specified returns what the docs have to say in parentheses of each option, by its path: "template.wait.min".
func specified(attrs map[string]*hclspec.Spec) map[string]string {
	all := map[string]string{}
	for name, spec := range attrs {
		var block *hclspec.Spec
		switch {
		case spec.GetDefault() != nil:
			all[name] = "default: `" + spec.GetDefault().GetDefault().GetLiteral().GetValue() + "`"
		case spec.GetAttr().GetRequired():
			all[name] = "required"
		case spec.GetAttr() != nil:
			all[name] = "default: none"
		case spec.GetBlockAttrs() != nil:
			all[name] = "default: none"
		case spec.GetBlockValue() != nil:
			all[name], block = "block", spec.GetBlockValue().GetNested()
		case spec.GetBlockList() != nil:
			all[name], block = "blocks", spec.GetBlockList().GetNested()
		case spec.GetBlockMap() != nil:
			all[name], block = "blocks, by name", spec.GetBlockMap().GetNested()
		default:
			all[name] = "of a kind this test does not know: " + spec.String()
		}
		for inner, says := range specified(block.GetObject().GetAttributes()) {
			all[name+"."+inner] = says
		}
	}
	return all
}

var (
	option    = regexp.MustCompile("^( *)- `(\\w+)` - \\((.+?)\\) -( \\S|$)")
	onlyFor   = regexp.MustCompile("^## `vault-(\\w+)` only$")
	otherwise = regexp.MustCompile("^(default: `.*?`)((?:, for `[\\w-]+`: `.*?`)*)$")
)

// documented returns what a page says in parentheses of each option that a driver has under that name.
func documented(t *testing.T, file, wraps, name string) map[string]string {
	t.Helper()
	all, scope := map[string]string{}, wraps
	var path []string
	for line := range strings.Lines(page(t, file)) {
		line = strings.TrimRight(line, "\n")
		if m := onlyFor.FindStringSubmatch(line); m != nil {
			scope = m[1]
		}
		m := option.FindStringSubmatch(line)
		must.True(t, m != nil || !strings.HasPrefix(strings.TrimSpace(line), "- `"),
			must.Sprintf("not the form of an option: %s", line))
		if m == nil || scope != wraps {
			continue
		}
		depth := len(m[1]) / 2
		must.LessEq(t, len(path), depth, must.Sprintf("indented too far: %s", line))
		path = append(path[:depth], m[2])
		key := strings.Join(path, ".")
		must.MapNotContainsKey(t, all, key, must.Sprint(file, " has an option twice"))
		all[key] = strings.ReplaceAll(under(m[3], name), "<name>", name)
	}
	return all
}

// under picks the default that holds under a published name.
func under(says, name string) string {
	m := otherwise.FindStringSubmatch(says)
	if m == nil {
		return says
	}
	if _, own, ok := strings.Cut(m[2], ", for `"+name+"`: "); ok {
		own, _, _ = strings.Cut(own, ", for `")
		return "default: " + own
	}
	return m[1]
}

func TestDocsKnowTheTemplateFunctions(t *testing.T) {
	works := named(t, "What works")
	must.SliceContains(t, works, "secret")
	for _, name := range works {
		_, err := template.Parse(template.Spec{Name: name, Data: "{{ " + name + " }}"})
		must.NoError(t, err)
	}
	refused := named(t, "What answers with an error")
	must.SliceContains(t, refused, "plugin")
	for _, name := range refused {
		_, err := template.Parse(template.Spec{Name: name, Data: "{{ " + name + " }}"})
		must.ErrorContains(t, err, "nomad-driver-vault", must.Sprint(name, " is not refused, or does not exist at all"))
	}
}

// named returns the functions in the first column of a section's table.
func named(t *testing.T, title string) []string {
	t.Helper()
	var names []string
	for _, cell := range firstColumn(section(t, "docs/templates.md", title)) {
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// TestDocsQuoteMessagesAsTheyArePrinted looks for each message of docs/troubleshooting.md, and each that a door answers
// with, in the string constants of the program, piece by piece: the code may build a message from several strings, and
// "…" stands for what it fills in. So this proves the words of a message and not their order.
func TestDocsQuoteMessagesAsTheyArePrinted(t *testing.T) {
	program := constants(t)
	count := 0
	tables := page(t, "docs/troubleshooting.md") + section(t, "docs/doors.md", "What a door refuses")
	for _, cell := range firstColumn(tables) {
		for _, message := range code.FindAllStringSubmatch(cell, -1) {
			count++
			for _, piece := range pieces.Split(message[1], -1) {
				if piece = strings.TrimSpace(piece); len(piece) >= 5 && !strings.Contains(program, piece) {
					t.Errorf("message %q: no string constant of the program has %q", message[1], piece)
				}
			}
		}
	}
	must.Greater(t, 50, count, must.Sprint("the tables were not found"))
}

// constants returns the string constants of the program that serves an agent, one on a line.
func constants(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	must.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", "bin", "e2e", "operator"}, path):
			return filepath.SkipDir
		case entry.IsDir(), filepath.Ext(path) != ".go", strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				all.WriteString(constant(e) + "\n")
			}
			return true
		})
		return nil
	}))
	return all.String()
}

// constant joins strings that are added up over several lines of source.
func constant(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.BinaryExpr:
		return constant(e.X) + constant(e.Y)
	}
	return ""
}

var (
	code   = regexp.MustCompile("`([^`]+)`")
	pieces = regexp.MustCompile(`…|: |; `)
)

// page returns a file of this repository.
func page(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	must.NoError(t, err)
	return string(text)
}

// section returns the text below a heading of a page up to the next one of the same level.
func section(t *testing.T, file, title string) string {
	t.Helper()
	text := page(t, file)
	heading := regexp.MustCompile(`(?m)^(#+) ` + regexp.QuoteMeta(title) + `\n`).FindStringSubmatchIndex(text)
	must.NotNil(t, heading, must.Sprint(file, " has no section ", title))
	level, rest := text[heading[2]:heading[3]], text[heading[1]:]
	if end := regexp.MustCompile(`(?m)^#{1,` + strconv.Itoa(len(level)) + `} `).FindStringIndex(rest); end != nil {
		rest = rest[:end[0]]
	}
	return rest
}

// firstColumn returns the first cell of each row of the tables in text.
func firstColumn(text string) []string {
	var cells []string
	for line := range strings.Lines(text) {
		if row, ok := strings.CutPrefix(line, "| "); ok {
			cell, _, _ := strings.Cut(row, " | ")
			cells = append(cells, cell)
		}
	}
	return cells
}

package convert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-vault/operator"
)

// do runs the command, and returns its exit code and what it has printed.
func do(args ...string) (code int, out, errs string) {
	var stdout, stderr strings.Builder
	code = operator.Program{Commands: []operator.Command{Command()}}.Run(append([]string{"convert"}, args...),
		operator.Terminal{Out: &stdout, Err: &stderr})
	return code, stdout.String(), stderr.String()
}

func TestDiffIsPrintedAndFindingsApart(t *testing.T) {
	code, out, errs := do("testdata/jobs/old-fields.nomad.hcl")
	must.Zero(t, code)
	must.StrHasPrefix(t, "--- testdata/jobs/old-fields.nomad.hcl\n+++ testdata/jobs/old-fields.nomad.hcl (converted)\n@@ ",
		out)
	must.StrContains(t, out, "-      driver = \"exec\"\n+      driver = \"vault-exec\"\n")
	must.StrHasPrefix(t, "testdata/jobs/old-fields.nomad.hcl:11: allow_token_expiration ", errs)
	must.StrContains(t, errs, "\ntestdata/jobs/old-fields.nomad.hcl:16: vault_grace ")
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	const before, after, computed = "testdata/jobs/cat.nomad.hcl", "testdata/converted/cat.nomad.hcl",
		"testdata/jobs/computed-driver.nomad.hcl"
	for sentence, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"-check has something to change":      {args: []string{"-check", before}, code: 1},
		"-check has something to decide":      {args: []string{"-check", computed}, code: 1},
		"-check has nothing to say":           {args: []string{"-check", after}},
		"-check of a job that stays":          {args: []string{"-check", "testdata/jobs/nothing-to-do.nomad.hcl"}},
		"one of several has something to say": {args: []string{"-check", after, before}, code: 1},
		"no file":                             {code: 2, says: "name a jobspec"},
		"-w and -check":                       {args: []string{"-w", "-check", "x"}, code: 2, says: "exclude each other"},
		"an unknown flag":                     {args: []string{"-x"}, code: 2, says: "-x; -h shows the flags"},
		"a file that is not there":            {args: []string{"none.hcl"}, code: 1, says: "read jobspec: open none.hcl"},
		"a bad file does not stop the others": {args: []string{"none.hcl", before}, code: 1, says: "none.hcl"},
		"a folder":                            {args: []string{dir}, code: 1, says: "read jobspec: read "},
		"a file without a job":                {args: []string{file("b.hcl", "a = 1\n")}, code: 1, says: "has no job block"},
		"an empty file":                       {args: []string{file("d.hcl", "")}, code: 1, says: "has no job block"},
		"a file that is no HCL": {args: []string{file("a.hcl", "job \"a\" {\n")}, code: 1,
			says: "a.hcl:1,9-10: Unclosed configuration block"},
		"a heredoc without an end": {args: []string{file("e.hcl", "job \"a\" {\n a = <<EOF\n")}, code: 1, says: "e.hcl:"},
		"a job in JSON": {args: []string{file("c.json", `{"Job": {}}`)}, code: 1,
			says: "only a jobspec in HCL can be converted"},
		"a task that is hardly begun": {args: []string{"-check",
			file("f.hcl", "job \"a\" {\n group \"g\" {\n task \"t\" {\n driver = \"exec\"\n }\n }\n}\n")}},
	} {
		t.Run(sentence, func(t *testing.T) {
			code, _, errs := do(c.args...)
			must.Eq(t, c.code, code, must.Sprint(errs))
			must.StrContains(t, errs, c.says)
			if c.says != "" {
				must.Eq(t, 1, strings.Count(errs, "\n"), must.Sprint(errs))
			}
		})
	}
}

func TestFileIsWrittenInPlace(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "cat.nomad.hcl"), filepath.Join(dir, "link.nomad.hcl")
	text := string(read(t, "testdata/jobs/cat.nomad.hcl").text)
	must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	must.NoError(t, os.Chmod(path, 0o640))
	must.NoError(t, os.Symlink("cat.nomad.hcl", link))

	code, out, errs := do("-w", link)
	must.Zero(t, code)
	must.Eq(t, "", out+errs)
	must.Eq(t, string(read(t, "testdata/converted/cat.nomad.hcl").text), string(read(t, path).text))
	info, err := os.Lstat(path)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o640), info.Mode())
	info, err = os.Lstat(link)
	must.NoError(t, err)
	must.Eq(t, os.ModeSymlink, info.Mode().Type())
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceLen(t, 2, left, must.Sprint("a temporary file is left"))
}

func TestLineEndsOfWindowsStay(t *testing.T) {
	spec := read(t, "testdata/jobs/mongo.nomad.hcl")
	spec.text = []byte(strings.ReplaceAll(string(spec.text), "\n", "\r\n"))
	made, _, err := rewrite(spec)
	must.NoError(t, err)
	want := string(read(t, "testdata/converted/mongo.nomad.hcl").text)
	must.Eq(t, strings.ReplaceAll(want, "\n", "\r\n"), string(made))
}

func TestFindingsAreAtTheLinesOfTheFile(t *testing.T) {
	spec := read(t, "testdata/jobs/dynamic-map.nomad.hcl")
	_, findings, err := rewrite(spec)
	must.NoError(t, err)
	must.SliceLen(t, 1, findings)
	must.Eq(t, "      template {", strings.Split(string(spec.text), "\n")[findings[0].line-1])
	must.StrContains(t, findings[0].says, `function "key" reads Consul`)
}

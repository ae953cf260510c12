package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const module = "nomad-driver-vault"

// listed is what go list says of a package.
type listed struct {
	ImportPath    string
	Imports, Deps []string
}

func ourPackages(t *testing.T) map[string]listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	must.NoError(t, err)
	all := make(map[string]listed)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		must.NoError(t, err)
		if !strings.HasPrefix(p.ImportPath, module+"/e2e") {
			all[p.ImportPath] = p
		}
	}
}

// leaves are what package driver is built of. None knows Nomad.
var leaves = []string{"driver/door", "driver/door/httpdoor", "driver/door/postgresdoor", "driver/door/process",
	"driver/identity", "driver/logpipe", "driver/sched", "driver/state", "driver/status",
	"driver/taskapi", "driver/template", "driver/vault", "driver/vault/session", "driver/vault/tokenrole"}

// TestImportsPointOneWay keeps the map of the packages true: main -> plugin -> driver -> leaves. What an operator runs
// by hand stands beside the plugin and reads configuration with its code.
func TestImportsPointOneWay(t *testing.T) {
	allowed := map[string][]string{
		"": {"driver/door/process", "internal/inherited", "operator", "operator/check", "operator/convert",
			"operator/setup", "operator/status", "plugin"},
		"operator": {"driver/config", "driver/vault", "plugin"},
		// vault for the type of a cluster's configuration
		"plugin": {"driver", "driver/config", "driver/status", "driver/vault", "plugin/wrapped"},

		"plugin/wrapped":    {"internal/inode", "internal/logtext", "plugin/execroot"},
		"plugin/execroot":   {"internal/inode"},
		"plugin/drivertest": {"e2e/stack", "internal/need"}, // for tests: an engine, and an image that is in it

		"driver": {"internal/faults", "driver/config", "driver/credentials", "driver/render", "driver/door",
			"driver/door/process", "driver/identity", "driver/logpipe", "driver/sched", "driver/state", "driver/status",
			"driver/taskapi", "driver/template", "driver/vault", "driver/vault/session", "internal/logtext"},

		"operator/check": {"driver/config", "driver/credentials", "driver/door", "driver/door/process", "driver/render",
			"driver/template", "driver/vault", "driver/vault/session", "internal/logtext", "operator", "plugin"},
		"operator/convert": {"driver/template", "operator"},
		"operator/setup":   {"operator"},
		"operator/status":  {"driver/status", "internal/logtext", "operator"},

		"driver/config": {"driver/door", "driver/template", "driver/vault"}, // for Spec, Fields and Cluster
		"driver/credentials": {"driver/config", "driver/identity", "driver/state", "driver/status", "driver/taskapi",
			"driver/template", "driver/vault", "driver/vault/session", "internal/inode"},
		"driver/render": {"driver/config", "driver/credentials", "driver/door", "driver/template", "driver/vault",
			"internal/inode", "internal/logtext"},
		"driver/door":              nil,
		"driver/door/httpdoor":     {"driver/door"},
		"driver/door/postgresdoor": {"driver/door"},
		"driver/door/process": {"driver/door", "driver/door/httpdoor", "driver/door/postgresdoor",
			"internal/inode"},

		"driver/identity": {"internal/inode"},
		"driver/logpipe":  {"internal/inode"},
		"driver/sched":    nil,
		"driver/state":    nil,
		"driver/status":   nil,
		"driver/taskapi":  {"internal/inode"},
		"driver/template": {"internal/inode", "internal/logtext"},
		"driver/vault":    nil,

		"driver/state/statetest": {"internal/need"},

		"driver/vault/session": {"driver/sched", "driver/status", "driver/vault", "driver/vault/tokenrole",
			"internal/logtext"},
		"driver/vault/tokenrole": {"driver/sched", "driver/vault"},

		"internal/faults":    nil,
		"internal/inode":     nil,
		"internal/logtext":   nil,
		"internal/need":      nil,
		"internal/inherited": nil,
	}
	for path, p := range ourPackages(t) {
		from := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if ours && !slices.Contains(allowed[from], to) && !isTestHelperOf(from, to) {
				t.Errorf("%s imports %s", path, imported)
			}
		}
	}
}

// isTestHelperOf allows a package such as driver/vault/vaulttest to import the one it stands in for.
func isTestHelperOf(from, to string) bool { return from == to+"/"+filepath.Base(to)+"test" }

func TestLeavesDoNotKnowNomad(t *testing.T) {
	for path, p := range ourPackages(t) {
		name := strings.TrimPrefix(path, module+"/")
		if !slices.Contains(leaves, name) && !strings.HasPrefix(name, "internal/") {
			continue
		}
		for _, dep := range p.Deps {
			if nomad(dep) && !strings.HasPrefix(dep, "github.com/hashicorp/nomad/api") {
				t.Errorf("%s depends on %s", path, dep)
			}
		}
	}
}

func nomad(path string) bool { return strings.HasPrefix(path, "github.com/hashicorp/nomad/") }

// TestFewImportersEach pins the libraries that only some of our packages may import. Each of them must do so: an
// owner that does not is a rule that cannot fail.
func TestFewImportersEach(t *testing.T) {
	owners := map[string][]string{
		"github.com/hashicorp/nomad/drivers/docker":  {"plugin/wrapped"},
		"github.com/hashicorp/nomad/drivers/exec":    {"plugin/wrapped"},
		"github.com/hashicorp/nomad/drivers/rawexec": {"plugin/wrapped"},
		"github.com/hashicorp/nomad/api": {"driver/credentials", "driver/taskapi", "driver/template", "operator",
			"operator/check"},
		"github.com/hashicorp/nomad/jobspec2":  {"operator"},
		"github.com/hashicorp/vault/api":       {"driver/vault", "operator", "operator/setup"},
		"github.com/hashicorp/consul-template": {"driver/template"},
		"github.com/jackc/pgx/v5":              {"driver/door/postgresdoor"},
	}
	packages := ourPackages(t)
	for library, allowed := range owners {
		var importers []string
		for path, p := range packages {
			if slices.ContainsFunc(p.Imports, func(imported string) bool { return within(imported, library) }) {
				importers = append(importers, strings.TrimPrefix(path, module+"/"))
			}
		}
		slices.Sort(importers)
		must.Eq(t, allowed, importers, must.Sprint(library))
	}
}

func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

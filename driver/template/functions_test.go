package template

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestEveryImpureFunctionIsReplaced reads consul-template's own source. A
// function of its map is impure when it is made from anything of an execution
// (its brain, its dependencies, an environment, a path), or when what it calls
// reaches the host or starts a goroutine. Each of these must be one of ours, so
// a new version of consul-template cannot bring one in unseen.
func TestEveryImpureFunctionIsReplaced(t *testing.T) {
	src := readLibrary(t, "github.com/hashicorp/consul-template/template", "funcMap")
	ours := (&execution{}).own()
	delete(ours, "secretExists") // which it does not have
	for name := range refusedFuncs {
		ours[name] = nil
	}
	replaced := 0
	for name, value := range src.funcMap {
		_, isOurs := ours[name]
		if isOurs {
			replaced++
		}
		if why := src.impure(value, make(map[string]bool)); why != "" && !isOurs {
			t.Errorf("function %q of consul-template is not replaced, but it uses %s", name, why)
		}
	}
	must.Eq(t, len(ours), replaced, must.Sprint("some of our functions are not consul-template's"))
	must.Greater(t, 90, len(src.funcMap), must.Sprint("the function map was not found"))
	// The test itself must see what it is for.
	for _, name := range []string{"secret", "file", "env", "plugin", "writeToFile", "spew_dump", "sockaddr", "loop",
		"executeTemplate"} {
		must.NotEq(t, "", src.impure(src.funcMap[name], make(map[string]bool)), must.Sprint(name))
	}
	must.Eq(t, "", src.impure(src.funcMap["toJSON"], make(map[string]bool)))
}

// TestEveryFunctionHasACost goes through all that a template can call: without a cost there is no bound.
func TestEveryFunctionHasACost(t *testing.T) {
	exist := make(map[string]bool)
	for name := range language {
		exist[name] = true
	}
	for name := range (&execution{}).own() {
		exist[name] = true
	}
	for name := range readLibrary(t, "text/template", "builtins").funcMap {
		exist[name] = true
	}
	must.Greater(t, 250, len(exist))
	for name := range exist {
		_, classified := classes[name]
		refused := refusedFuncs[name] != ""
		must.True(t, classified != refused, must.Sprintf("function %q: has a cost: %v, is refused: %v", name, classified,
			refused))
	}
	count, seen := 0, make(map[string]bool)
	for name, class := range classes {
		must.True(t, exist[name], must.Sprint(name))
		if !seen[class.names] {
			seen[class.names] = true
			count += len(strings.Fields(class.names))
		}
	}
	must.Eq(t, len(classes), count, must.Sprint("a function has two costs"))
}

// funcMap is called with as much empty room as its argument could have.
func TestFuncMapHasRoom(t *testing.T) {
	src := readLibrary(t, "github.com/hashicorp/consul-template/template", "funcMap")
	fields := src.structs["funcMapInput"].Fields.List
	must.Between(t, 5, len(fields), funcMapInputWords/3) // none is larger than a slice
	must.Len(t, 1, src.params["funcMap"].List)
	must.Eq(t, "funcMapInput", src.params["funcMap"].List[0].Type.(*ast.StarExpr).X.(*ast.Ident).Name)
}

// librarySource is a package as text.
type librarySource struct {
	funcMap map[string]ast.Expr
	bodies  map[string]*ast.BlockStmt
	params  map[string]*ast.FieldList
	structs map[string]*ast.StructType
}

// readLibrary reads a package with a function that has a map of functions in it.
func readLibrary(t *testing.T, path, function string) *librarySource {
	pkg, err := build.Import(path, ".", build.FindOnly)
	must.NoError(t, err)
	names, err := filepath.Glob(filepath.Join(pkg.Dir, "*.go"))
	must.NoError(t, err)
	src := &librarySource{make(map[string]ast.Expr), make(map[string]*ast.BlockStmt), make(map[string]*ast.FieldList),
		make(map[string]*ast.StructType)}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		must.NoError(t, err)
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				src.bodies[f.Name.Name], src.params[f.Name.Name] = f.Body, f.Type.Params
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if t, ok := n.(*ast.TypeSpec); ok {
				src.structs[t.Name.Name], _ = t.Type.(*ast.StructType)
			}
			return true
		})
	}
	ast.Inspect(src.bodies[function], func(n ast.Node) bool {
		if kv, ok := n.(*ast.KeyValueExpr); ok {
			name, err := strconv.Unquote(kv.Key.(*ast.BasicLit).Value)
			must.NoError(t, err)
			src.funcMap[name] = kv.Value
		}
		return true
	})
	return src
}

// hostPackages are the names under which consul-template imports what reaches
// outside the process.
var hostPackages = []string{"os", "exec", "user", "net", "http", "syscall", "socktmpl", "spewLib"}

// impure names the first thing outside its arguments that node uses.
func (l *librarySource) impure(node ast.Node, seen map[string]bool) (why string) {
	ast.Inspect(node, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			why = "a goroutine"
		case *ast.SelectorExpr:
			x, _ := n.X.(*ast.Ident)
			if x == nil {
				break
			}
			input := x.Name == "i" && len(seen) == 0 // funcMap's own argument
			if input || slices.Contains(hostPackages, x.Name) {
				why = x.Name + "." + n.Sel.Name
			}
		}
		return why == ""
	})
	ast.Inspect(node, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if ok && why == "" && l.bodies[id.Name] != nil && !seen[id.Name] {
			seen[id.Name] = true
			why = l.impure(l.bodies[id.Name], seen)
		}
		return why == ""
	})
	return why
}

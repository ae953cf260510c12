package template

import (
	"fmt"
	"text/template"
	"unsafe"

	_ "github.com/hashicorp/consul-template/template" // has what funcMap is linked to
)

// funcMap returns consul-template's functions, and Sprig's among them. The library exports no function and executes a
// template in one piece, so who wants to look at each call before it happens has to take them from where they are. The
// argument is all that the functions have of an execution (funcMapInput): those that use it are refused or replaced.
//
//go:linkname funcMap github.com/hashicorp/consul-template/template.funcMap
func funcMap(input unsafe.Pointer) template.FuncMap

// language is those functions, and those of Go's own that print and that a package has for others. It has more room
// than funcMapInput, all of it empty: functions_test.go looks at its size.
var language = func() template.FuncMap {
	m := funcMap(unsafe.Pointer(new([funcMapInputWords]uintptr)))
	for name, f := range map[string]any{
		"print": fmt.Sprint, "printf": fmt.Sprintf, "println": fmt.Sprintln,
		"html": template.HTMLEscaper, "js": template.JSEscaper, "urlquery": template.URLQueryEscaper,
	} {
		m[name] = f
	}
	return m
}()

const funcMapInputWords = 64

const (
	readsConsul = "reads Consul, which nomad-driver-vault does not: "
	notHere     = "is not available in nomad-driver-vault: "
)

// refusedFuncs are consul-template's functions that templates may not use, each
// with the reason and what to use instead. Nomad denies the first three by
// default as well (client option template.function_denylist).
var refusedFuncs = map[string]string{
	"plugin":          notHere + "it runs a program as root on the host; run it in the task",
	"writeToFile":     notHere + "it writes outside the task's directory; add a template block with its own destination",
	"executeTemplate": notHere + `it has no limit of depth; use {{ template "name" . }}`,
	"spew_dump":       notHere + "it prints on the plugin's own output; use toJSON",
	"spew_printf":     notHere + "it prints on the plugin's own output; use printf",
	"spew_sdump":      notHere + "use toJSON",
	"spew_sprintf":    notHere + "use printf",
	"sockaddr":        notHere + `it reads the host's network interfaces; use {{ env "NOMAD_IP_<label>" }}`,

	"key":              readsConsul + "use secret or nomadVar",
	"keyExists":        readsConsul + "use nomadVarExists",
	"keyOrDefault":     readsConsul + "use nomadVarExists and nomadVar",
	"ls":               readsConsul + "use secrets or nomadVarList",
	"safeLs":           readsConsul + "use nomadVarListSafe",
	"tree":             readsConsul + "use nomadVarList",
	"safeTree":         readsConsul + "use nomadVarListSafe",
	"service":          readsConsul + "use nomadService",
	"services":         readsConsul + "use nomadServices",
	"connect":          readsConsul + "use nomadService",
	"exportedServices": readsConsul + "use nomadServices",
	"importedServices": readsConsul + "use nomadServices",
	"node":             readsConsul + `use env, e.g. {{ env "node.unique.name" }}`,
	"nodes":            readsConsul + "use nomadService",
	"datacenters":      readsConsul + `use {{ env "NOMAD_DC" }}`,
	"partitions":       readsConsul + "write the names into the template",
	"peerings":         readsConsul + "write the names into the template",
	"caRoots":          readsConsul + "use secret with Vault's PKI engine",
	"caLeaf":           readsConsul + "use pkiCert with Vault's PKI engine",
}

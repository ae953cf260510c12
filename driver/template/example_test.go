package template_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-vault/driver/template"
)

// A template is checked once and executed as often as its answers change.
func Example() {
	parsed, err := template.Parse(template.Spec{
		Name: "secrets/app.env",
		Data: `LISTEN={{ env "NOMAD_PORT_http" }}{{ "\n" }}MODE={{ env "MODE" | toUpper }}`,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	output, err := parsed.Execute(context.Background(), template.Input{
		Env: map[string]string{"NOMAD_PORT_http": "8080", "MODE": "quiet"},
	})
	fmt.Println(string(output), err)
	// Output:
	// LISTEN=8080
	// MODE=QUIET <nil>
}

// The error of a template names the line.
func ExampleParse_error() {
	_, err := template.Parse(template.Spec{Name: "secrets/app.env", Data: "a\n{{ nope }}"})
	fmt.Println(err)
	// Output:
	// parse template "secrets/app.env": line 2: function "nope" not defined
}

// Files replace each other whole: a reader sees the old bytes or the new ones.
func ExampleWrite() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, sub := range []string{"alloc", "web/secrets"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			fmt.Println(err)
			return
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer root.Close()
	generation := []template.File{{Path: "web/secrets/db", Data: []byte("password"), Perm: 0o600, UID: -1, GID: -1}}
	for range 2 {
		changed, err := template.Write(root, "web", generation)
		fmt.Println(changed, err)
	}
	// Output:
	// [web/secrets/db] <nil>
	// [] <nil>
}

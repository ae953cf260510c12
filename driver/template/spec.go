package template

import (
	"cmp"
	"os"
	"strings"
	"text/template/parse"
	"time"
)

// Spec is one template as the job author wrote it.
type Spec struct {
	// Name is how messages name the template, e.g. its destination.
	Name string

	Data string

	// LeftDelim and RightDelim are "{{" and "}}" when empty.
	LeftDelim, RightDelim string

	// ErrorOnMissingKey makes a map key that does not exist an error. Without
	// it such a key renders as "<no value>", as in Nomad.
	ErrorOnMissingKey bool

	// Env is set where the result is NAME=value lines for ParseEnv.
	Env bool

	// Values are what may have been written into Data before it came here, by name. None of them may be a part of its
	// code.
	Values map[string]string

	// Budget is that of all templates of the task; nil gives this one its own.
	Budget *Budget
}

// Input is what a template may look at.
type Input struct {
	Source Source

	// Env is the task's environment, the only one templates see, with those of NodeVariables that are known.
	Env map[string]string

	// Root is the task's directory and Alloc the allocation's shared one, for
	// the function file. Either may be nil; file then refuses its paths.
	Root, Alloc *os.Root

	// Budget is that of all templates of the task; nil gives this one its own.
	Budget *Budget
}

// A Budget is what the templates of one task may take together. One of them executes at a time, and so no others of the
// task are ahead of another task's.
type Budget struct {
	turn chan struct{} // holds one while a template of the task executes; who does may change what follows
	made float64       // bytes that functions have returned in this pass
	out  int           // bytes of results
	busy time.Duration
	code int // bytes of the templates themselves, within delimiters
	text int // and of all
}

// NewBudget is for the templates of one task.
func NewBudget() *Budget { return &Budget{turn: make(chan struct{}, 1)} }

// parse returns the template's text as trees, which may have functions that do not exist.
func (s Spec) parse() (map[string]*parse.Tree, error) {
	trees := make(map[string]*parse.Tree)
	tree := parse.New("")
	tree.Mode = parse.SkipFuncCheck
	_, err := tree.Parse(s.Data, s.LeftDelim, s.RightDelim, trees)
	return trees, err
}

// line is where a node of the template begins.
func (s Spec) line(node parse.Node) int { return 1 + strings.Count(s.Data[:node.Position()], "\n") }

// delimiters are those of the template.
func (s Spec) delimiters() (left, right string) {
	return cmp.Or(s.LeftDelim, "{{"), cmp.Or(s.RightDelim, "}}")
}

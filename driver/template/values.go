package template

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// The agent replaces ${NAME} in a template's text before this plugin sees it (nomad/helper/pluginutils/hclutils), and
// the raw text is nowhere to be had. So a value that somebody else has chosen, a dispatcher's meta for example, could
// write code into the template. The values of the task's environment are known: where one of them stands in the text as
// a part of its code, the template is refused.

// maxCompared bounds how many bytes of text are searched for values.
const maxCompared = 1 << 30

var (
	// innocent is what a value may be that stands in code, by chance or because the author wants it there: a word, or
	// numbers and signs between them. To do anything it needs code of the author's own around it.
	innocent = regexp.MustCompile(`^(\w+|[\s|,=:./0-9-]+)$`)
	// signs are in delimiters for which no sign is innocent.
	signs = regexp.MustCompile(`[|,=:./0-9-]`)
	// odd is in delimiters that the parser may take for a part of something else, as read would not.
	odd = regexp.MustCompile("[\\pL\\pN_\\s\"'`\\\\.$+:=]")

	commentStart = regexp.MustCompile(`^(-\s)?/\*`)
)

// checkValues returns an error for a value of s.Values that is a part of the template's code. It names the variable
// only.
func (s Spec) checkValues() error {
	code := s.read()
	budget := maxCompared
	// NOMAD_META_x before NOMAD_META_X, which has the same value
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(s.Values))) {
		value := s.Values[name]
		all := spellings(value)
		if budget -= len(all) * len(s.Data); budget < 0 || code.odds(value) > maxCompared {
			return fmt.Errorf("parse template %q: data and the task's environment are too large to be compared: use source",
				s.Name)
		}
		for _, text := range all {
			if at := cmp.Or(code.find(text), code.cut(text)); at != nil {
				return s.valueError(name, *at)
			}
		}
	}
	return nil
}

func (s Spec) valueError(name string, at int) error {
	left, right := s.delimiters()
	return fmt.Errorf("parse template %[1]q: line %[2]d: the value of %[3]s would be template code here: in place of "+
		"${%[3]s} write %[4]s env %[3]q %[5]s, "+
		"or (env %[3]q) within an action", s.Name, 1+strings.Count(s.Data[:at], "\n"), name, left, right)
}

// spellings are the texts that the agent can make of a value with its HCL functions lower, upper, jsonencode and
// jsondecode. For substr see cut.
func spellings(value string) []string {
	all := []string{value, strings.ToLower(value), strings.ToUpper(value)}
	if encoded, err := json.Marshal(value); err == nil {
		all = append(all, string(encoded[1:len(encoded)-1]))
	}
	var decoded any
	if strings.ContainsAny(value, `[{"`) && json.Unmarshal([]byte(value), &decoded) == nil {
		all = append(all, texts(decoded)...)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(text string) bool { return text == "" })
}

// texts are the strings and names in decoded JSON.
func texts(v any) (all []string) {
	switch v := v.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, item := range v {
			all = append(all, texts(item)...)
		}
	case map[string]any:
		for name, item := range v {
			all = append(append(all, name), texts(item)...)
		}
	}
	return all
}

// A region is what a byte of a template's text is to the parser.
type region byte

const (
	inText    region = iota // printed as it is
	inCode                  // delimiters, and all between them that is none of the following
	inQuoted                // between the quotation marks of a "string"
	inRaw                   // between those of a `string`
	inComment               // between /* and */
)

// code is a template's text with what each byte of it is.
type code struct {
	text        string
	left, right string
	regions     []region
	actions     map[string]int // in lower case, each with its place
}

// read reads the text as the lexer of text/template/parse does. Where that is not certain, because of odd delimiters,
// all is code.
func (s Spec) read() *code {
	c := &code{text: s.Data, regions: make([]region, len(s.Data)), actions: map[string]int{}}
	c.left, c.right = s.delimiters()
	if odd.MatchString(c.left + c.right) {
		c.mark(0, len(c.text), inCode)
		return c
	}
	for at := 0; ; {
		found := strings.Index(c.text[at:], c.left)
		if found < 0 {
			return c
		}
		begin := at + found
		at = c.action(begin)
		c.actions[strings.ToLower(c.text[begin:at])] = begin
	}
}

func (c *code) mark(from, to int, as region) int {
	to = min(to, len(c.text))
	for i := from; i < to; i++ {
		c.regions[i] = as
	}
	return to
}

// action marks the action that begins at a place, and returns where it ends.
func (c *code) action(at int) int {
	at = c.mark(at, at+len(c.left), inCode)
	if begin := commentStart.FindString(c.text[at:]); begin != "" {
		at = c.until("*/", c.mark(at, at+len(begin), inCode), inComment)
	}
	for at < len(c.text) && !strings.HasPrefix(c.text[at:], c.right) {
		mark := c.text[at]
		at = c.mark(at, at+1, inCode)
		switch mark {
		case '"':
			at = c.until(`"`, at, inQuoted)
		case '\'':
			at = c.until(`'`, at, inCode)
		case '`':
			at = c.until("`", at, inRaw)
		}
	}
	return c.mark(at, at+len(c.right), inCode)
}

// until marks what comes before an end, and the end as code. Behind a backslash it is none, but in what is raw.
func (c *code) until(end string, at int, as region) int {
	for at < len(c.text) && !strings.HasPrefix(c.text[at:], end) {
		width := 1
		if c.text[at] == '\\' && (as == inQuoted || as == inCode) {
			width = 2
		}
		at = c.mark(at, at+width, as)
	}
	return c.mark(at, at+len(end), inCode)
}

// find returns where a value is a part of the code, nil where it is not. It is none where it stands within one region
// that is not code; in a quoted string a backslash of it could take the end of the string away.
func (c *code) find(value string) *int {
	harmless := innocent.MatchString(value) && !signs.MatchString(c.left+c.right)
	for at := 0; at+len(value) <= len(c.text); {
		found := strings.Index(c.text[at:], value)
		if found < 0 {
			break
		}
		at += found
		is, end := c.regions[at], at+1
		for end < len(c.text) && c.regions[end] == is {
			end++
		}
		whole := at+len(value) <= end
		if !whole || is == inCode && !harmless || is == inQuoted && strings.Contains(value, `\`) {
			return &at
		}
		at = max(at+1, end-len(value)+1) // where it could stand next, and not within this region
	}
	return nil
}

// odds is how many bytes cut would look at.
func (c *code) odds(value string) int {
	if !strings.Contains(strings.ToLower(value), strings.ToLower(c.left)) {
		return 0
	}
	return len(value) * len(c.actions)
}

// cut returns where the text has an action, with its delimiters, that is a part of value whatever the case of its
// letters: such a part can be cut out with substr. It is nil where there is none.
func (c *code) cut(value string) *int {
	if c.odds(value) == 0 {
		return nil
	}
	value = strings.ToLower(value)
	for action, at := range c.actions {
		if strings.Contains(value, action) {
			return &at
		}
	}
	return nil
}

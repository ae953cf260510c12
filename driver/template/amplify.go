package template

import (
	"errors"
	"fmt"
	"strings"
)

// amplifiers replace the functions of consul-template and Sprig that make much
// of little: a number more, and the plugin has no memory left. What they return
// is what the originals return, as long as it is not more than a template may
// have.
func (x *execution) amplifiers() map[string]any {
	return map[string]any{
		"indent": indent,
		"sprig_indent": func(spaces int, s string) (string, error) {
			return pad("", spaces, s)
		},
		"sprig_nindent": func(spaces int, s string) (string, error) {
			return pad("\n", spaces, s)
		},
		"sprig_repeat": func(count int, s string) (string, error) {
			return repeat(s, count)
		},
		"sprig_until":     func(count int) ([]int, error) { return x.steps(0, count, direction(0, count)) },
		"sprig_untilStep": x.steps,
		"sprig_seq":       x.seq,
	}
}

func repeat(s string, count int) (string, error) {
	if count < 0 {
		return "", errors.New("a count is negative")
	}
	if len(s) > 0 && count > MaxOutput/len(s) {
		return "", errTooLarge
	}
	return strings.Repeat(s, count), nil
}

// indent puts spaces before each line that has something in it, as
// consul-template's function of that name does.
func indent(spaces int, s string) (string, error) {
	lines := strings.SplitAfter(s, "\n")
	prefix, err := prefixed(spaces, len(lines))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, line := range lines {
		if line != "" && line != "\n" {
			out.WriteString(prefix)
		}
		out.WriteString(line)
	}
	return out.String(), nil
}

// pad puts spaces before every line, as Sprig's indent does.
func pad(before string, spaces int, s string) (string, error) {
	prefix, err := prefixed(spaces, 1+strings.Count(s, "\n"))
	return before + prefix + strings.ReplaceAll(s, "\n", "\n"+prefix), err
}

// prefixed returns spaces that fit before that many lines.
func prefixed(spaces, lines int) (string, error) {
	if spaces > 0 && lines > MaxOutput/spaces {
		return "", errTooLarge
	}
	return repeat(" ", spaces)
}

func direction(start, stop int) int {
	if stop < start {
		return -1
	}
	return 1
}

// steps returns the numbers from start up or down to, but not including, stop.
func (x *execution) steps(start, stop, step int) ([]int, error) {
	numbers := []int{}
	if step == 0 || (stop < start) != (step < 0) {
		return numbers, nil
	}
	for i := start; (i < stop) == (step > 0) && i != stop; i += step {
		if x.looped++; x.looped > maxLoop {
			return nil, fmt.Errorf("more than %d numbers in one template", maxLoop)
		}
		numbers = append(numbers, i)
	}
	return numbers, nil
}

// seq prints the numbers to an end, from a start to an end, or from a start by
// steps to an end, like the command of that name.
func (x *execution) seq(params ...int) (string, error) {
	var start, end, step int
	switch len(params) {
	case 1:
		start, end, step = 1, params[0], direction(1, params[0])
	case 2:
		start, end, step = params[0], params[1], direction(params[0], params[1])
	case 3:
		start, step, end = params[0], params[1], params[2]
	default:
		return "", nil
	}
	numbers, err := x.steps(start, end+direction(start, end), step)
	return strings.Trim(fmt.Sprint(numbers), "[]"), err
}

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/shoenig/test/must"
)

// frontDoor is how many bytes README.md may have: a newcomer reads it in minutes.
const frontDoor = 12_000

func TestReadmeIsShort(t *testing.T) {
	text := page(t, "README.md")
	must.Less(t, frontDoor, len(text), must.Sprint("move what is about one subject to docs/"))
	for _, command := range []string{"make build", "make test"} {
		must.StrContains(t, text, command)
	}
}

var (
	fenced  = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// pages returns the documents of this repository.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", ".github/*.md"} {
		found, err := filepath.Glob(pattern)
		must.NoError(t, err)
		all = append(all, found...)
	}
	for _, file := range []string{"README.md", "docs/README.md", "SECURITY.md", "CONTRIBUTING.md"} {
		must.SliceContains(t, all, file)
	}
	return all
}

// links returns the targets of a page's links to files of this repository: "docs/limits.md",
// "docs/limits.md#templates".
func links(t *testing.T, file string) []string {
	t.Helper()
	var all []string
	for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(page(t, file), ""), -1) {
		switch target := m[1]; {
		case strings.Contains(target, "://"):
		case strings.HasPrefix(target, "#"):
			all = append(all, file+target)
		default:
			all = append(all, filepath.Join(filepath.Dir(file), target))
		}
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	count := 0
	for _, file := range pages(t) {
		for _, target := range links(t, file) {
			count++
			name, anchor, _ := strings.Cut(target, "#")
			if _, err := os.Stat(name); err != nil {
				t.Errorf("%s links to %s: %v", file, target, err)
			} else if anchor != "" && !slices.Contains(anchors(t, name), anchor) {
				t.Errorf("%s links to %s: there is no such heading", file, target)
			}
		}
	}
	must.Greater(t, 100, count, must.Sprint("the links were not found"))
}

func TestEveryPageIsInTheIndex(t *testing.T) {
	files, err := filepath.Glob("docs/*.md")
	must.NoError(t, err)
	index := links(t, "docs/README.md")
	for _, file := range files {
		if file != "docs/README.md" && !slices.Contains(index, file) {
			t.Errorf("docs/README.md does not link to %s", file)
		}
	}
}

// anchors returns the names of a page's headings in links, as hosts of repositories make them: lower case, without
// punctuation, "-" for a space, and -1, -2 behind what was there before.
func anchors(t *testing.T, file string) []string {
	t.Helper()
	var all []string
	before := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page(t, file), ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])
		if n := before[name]; n > 0 {
			all = append(all, name+"-"+strconv.Itoa(n))
		} else {
			all = append(all, name)
		}
		before[name]++
	}
	return all
}

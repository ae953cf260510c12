// Command plot draws what `go test -bench` prints of doors: what is left of the throughput without them.
//
//	go test -bench=. ./driver/door/... | go run ./e2e/plot >docs/doors.svg
package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// A bar is one metric that is a part of something else: 0.84 of plain.
type bar struct {
	label string
	part  float64
}

var (
	benchmark = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s`)
	metric    = regexp.MustCompile(`([\d.]+) (?:([\w-]+)-)?of-(\w+)`)
)

// read returns the bars of a benchmark's output.
func read(from io.Reader) (bars []bar, err error) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		name := benchmark.FindStringSubmatch(lines.Text())
		if name == nil {
			continue
		}
		for _, m := range metric.FindAllStringSubmatch(lines.Text(), -1) {
			part, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", lines.Text(), err)
			}
			label := strings.TrimSpace(name[1] + " " + m[2])
			bars = append(bars, bar{label + ", of " + m[3], part})
		}
	}
	return bars, lines.Err()
}

// The drawing, in units of an SVG.
const (
	rowHeight = 26
	labels    = 330 // width of the names
	whole     = 380 // length of a bar that is 1
	width     = labels + whole + 90
)

// draw draws the bars, with a line where there is no door.
func draw(to io.Writer, bars []bar) error {
	var b strings.Builder
	height := rowHeight*len(bars) + 20
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+
		"\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n", width, height)
	for i, bar := range bars {
		y := 10 + i*rowHeight
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labels-8, y+17, html.EscapeString(bar.label))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="#4178be"/>`, labels, y+4, bar.part*whole,
			rowHeight-8)
		fmt.Fprintf(&b, `<text x="%.0f" y="%d">%.2f</text>`+"\n", labels+bar.part*whole+6, y+17, bar.part)
	}
	fmt.Fprintf(&b, `<line x1="%d" y1="6" x2="%[1]d" y2="%d" stroke="#333" stroke-dasharray="4 3"/>`+"\n</svg>\n",
		labels+whole, height-6)
	_, err := io.WriteString(to, b.String())
	return err
}

func main() {
	bars, err := read(os.Stdin)
	if err == nil && len(bars) == 0 {
		err = fmt.Errorf("no benchmark on standard input is a part of something else")
	}
	if err == nil {
		err = draw(os.Stdout, bars)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

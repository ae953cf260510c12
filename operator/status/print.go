package status

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"nomad-driver-vault/driver/status"
	"nomad-driver-vault/internal/logtext"
)

// width is that of a terminal.
const width = 80

// print shows one plugin: a line for each task, or with details everything.
func (p *plugin) print(w io.Writer, details bool) {
	if p.Document == nil {
		paragraph(w, p.StateDir+"  ", p.Error)
		return
	}
	now := p.Plugin.Now
	fmt.Fprintf(w, "%s %s, pid %d, for %s\n", p.Plugin.Name, p.Plugin.Version, p.Plugin.PID, span(now.Sub(p.Plugin.Since)))
	for _, c := range p.Clusters {
		printCluster(w, c, now)
	}
	if p.Doors != nil {
		printDoors(w, p.Doors, now)
	}
	if !details && len(p.Tasks) > 0 {
		fmt.Fprintf(w, "\n  "+row, "ALLOC", "JOB/TASK", "GEN", "SINCE", "TOKEN", "NEXT", "STATE")
	}
	for _, t := range p.Tasks {
		if details {
			printAll(w, t, now)
		} else {
			printRow(w, t, now)
		}
	}
	for _, l := range p.Parked {
		printParked(w, l, now)
	}
	fmt.Fprintln(w)
}

func printCluster(w io.Writer, c status.Cluster, now time.Time) {
	text := fmt.Sprintf("%s, sessions: %d", c.Address, c.Sessions)
	if c.Queue > 0 {
		text += fmt.Sprintf(", due: %d, the oldest for %s", c.Queue, span(time.Duration(c.Late)*time.Second))
	}
	switch wrong := wrongWith(c); {
	case !c.Reachable:
		text += fmt.Sprintf("; %s for %s", wrong, span(now.Sub(c.Down)))
	case wrong != "":
		text += "; " + wrong
	}
	paragraph(w, fmt.Sprintf("  vault %q  ", c.Name), text)
}

func printDoors(w io.Writer, d *status.Doors, now time.Time) {
	text := fmt.Sprintf("open: %d, ", d.Open)
	if d.PID == 0 {
		text += "no process runs"
	} else {
		text += fmt.Sprintf("pid %d, for %s, %s of memory", d.PID, since(d.Since, now), size(d.Memory))
	}
	if n := len(d.Unclaimed); n > 0 {
		text += fmt.Sprintf("; no task has claimed: %s", strings.Join(d.Unclaimed, ", "))
	}
	if d.Trouble != "" {
		text += "; " + d.Trouble
	}
	paragraph(w, "  doors  ", text)
}

const row = "%-8.8s  %-20s  %3s  %-6s  %-6s  %-14s  %s\n"

// printRow shows a task on one line, and below it what is wrong.
func printRow(w io.Writer, t status.Task, now time.Time) {
	ends, next, action := earliest(t.Sessions)
	generation, state := "-", t.State
	if t.Generation > 0 {
		generation = fmt.Sprint(t.Generation)
	}
	if len(t.Trouble) > 0 {
		state = "trouble"
	}
	fmt.Fprintf(w, "  "+row, t.Alloc, clip(t.Job+"/"+t.Name, 20), generation, since(t.Since, now), until(ends, now),
		strings.TrimSpace(action+" "+until(next, now)), state)
	for _, text := range t.Trouble {
		paragraph(w, "    ! ", text)
	}
}

// earliest returns when the first token ends, and what happens next.
func earliest(sessions []status.Session) (ends, next time.Time, action string) {
	for _, s := range sessions {
		if ends.IsZero() || !s.Ends.IsZero() && s.Ends.Before(ends) {
			ends = s.Ends
		}
		for _, u := range append(upkeeps(s), s.Upkeep) {
			if !u.Next.IsZero() && (next.IsZero() || u.Next.Before(next)) {
				next, action = u.Next, u.Action
			}
		}
	}
	return ends, next, action
}

func upkeeps(s status.Session) (all []status.Upkeep) {
	for _, one := range s.Secrets {
		all = append(all, one.Upkeep)
	}
	return all
}

// printAll shows everything of a task.
func printAll(w io.Writer, t status.Task, now time.Time) {
	fmt.Fprintln(w)
	paragraph(w, "  allocation  ", t.Alloc)
	paragraph(w, "  task        ", fmt.Sprintf("%s of job %s, group %s, namespace %s: %s", t.Name, t.Job, t.Group,
		cmp.Or(t.Namespace, "default"), t.State))
	if t.Generation > 0 {
		paragraph(w, "  generation  ", fmt.Sprintf("%d, for %s", t.Generation, since(t.Since, now)))
	}
	if t.Pending != "" {
		paragraph(w, "  pending     ", t.Pending+" changed, of which the task is not told yet")
	}
	if t.Last.Text != "" {
		paragraph(w, "  last        ", since(t.Last.At, now)+" ago: "+t.Last.Text)
	}
	if t.Warned.Text != "" && t.Warned != t.Last {
		paragraph(w, "  warned      ", since(t.Warned.At, now)+" ago: "+t.Warned.Text)
	}
	for _, text := range t.Trouble {
		paragraph(w, "  trouble     ", text)
	}
	for _, s := range t.Sessions {
		printSession(w, s, now)
	}
	for _, d := range t.Doors {
		printDoor(w, d, now)
	}
}

func printSession(w io.Writer, s status.Session, now time.Time) {
	text := fmt.Sprintf("cluster %q, role %q", s.Cluster, s.Role)
	if s.Namespace != "" {
		text += fmt.Sprintf(", namespace %q", s.Namespace)
	}
	fmt.Fprintln(w)
	paragraph(w, fmt.Sprintf("  vault %q  ", s.Name), text+", policies "+strings.Join(s.Policies, " "))
	const row = "    %-7s  %-15s  %-8s  %s\n"
	fmt.Fprintf(w, row, "ENDS IN", "NEXT", "KIND", "TOKEN OR PATH")
	fmt.Fprintf(w, row, until(s.Ends, now), next(s.Upkeep, now), "token", logtext.Line(cmp.Or(s.Accessor, "-")))
	if s.Trouble != "" {
		paragraph(w, "      ! ", s.Trouble)
	}
	for _, one := range s.Secrets {
		fmt.Fprintf(w, row, until(one.Ends, now), next(one.Upkeep, now), one.Kind, logtext.Line(one.Path))
		if one.Trouble != "" {
			paragraph(w, "      ! ", one.Trouble)
		}
	}
	if s.Spent > 0 {
		paragraph(w, "    ", fmt.Sprintf("replaced and not revoked yet: %d", s.Spent))
	}
}

func printDoor(w io.Writer, d status.Door, now time.Time) {
	text := fmt.Sprintf("%s %s, no credential", d.Kind, d.Upstream)
	if d.Generation != 0 {
		text = fmt.Sprintf("%s %s, generation %d, for %s", d.Kind, d.Upstream, d.Generation, since(d.Since, now))
	}
	fmt.Fprintln(w)
	paragraph(w, fmt.Sprintf("  door %q  ", d.Name), text)
	const row = "    %-6v  %-9v  %-10v  %-8v  %-8v  %-9v  %v\n"
	fmt.Fprintf(w, row, "CONNS", "IN FLIGHT", "CALLS", "REFUSED", "FAILED", "SENT", "RECEIVED")
	fmt.Fprintf(w, row, d.Connections, d.InFlight, d.Calls, d.Refused, d.Failed, size(d.Sent), size(d.Received))
}

// size returns a number of bytes in ten characters or less.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func printParked(w io.Writer, l status.Parked, now time.Time) {
	text := "its tokens are being revoked"
	switch {
	case l.Held:
		text = "it has ended, and other tasks use what it has put into alloc/: its tokens are kept as long as one runs"
	case !l.Until.IsZero():
		text = fmt.Sprintf("its tokens wait %s for the next run, then they are revoked", until(l.Until, now))
	}
	if l.Trouble != "" {
		text = "its tokens cannot be revoked yet: " + l.Trouble
	}
	paragraph(w, fmt.Sprintf("  %-8.8s  %s: ", l.Alloc, l.Name), text)
}

// next says what happens when.
func next(u status.Upkeep, now time.Time) string {
	switch {
	case !u.Asking.IsZero():
		return u.Action + " now"
	case u.Next.IsZero():
		return "-"
	}
	return u.Action + " in " + until(u.Next, now)
}

func until(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(t.Sub(now))
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t))
}

// span returns a duration in six characters or less; one that is over is none.
func span(d time.Duration) string {
	d = max(d, 0)
	day := 24 * time.Hour
	for _, unit := range []struct {
		of, rest         time.Duration
		name, nameOfRest string
	}{{day, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d >= unit.of {
			return fmt.Sprintf("%d%s%d%s", d/unit.of, unit.name, d%unit.of/unit.rest, unit.nameOfRest)
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// clip shortens text to so many characters.
func clip(text string, most int) string {
	letters := []rune(logtext.Line(text))
	if len(letters) <= most {
		return string(letters)
	}
	return string(letters[:most-1]) + "…"
}

// paragraph prints text after label, on as many lines as it takes, below each other.
func paragraph(w io.Writer, label, text string) {
	label = logtext.Line(label)
	indent := strings.Repeat(" ", min(len([]rune(label)), 14))
	line := label
	words := strings.Fields(logtext.Line(text))
	for i, word := range words {
		if i > 0 && len([]rune(line))+1+len([]rune(word)) > width {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line = indent
		} else if i > 0 {
			line += " "
		}
		line += word
	}
	fmt.Fprintln(w, line)
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func snapshotCommand(g *globals) *cobra.Command {
	var tables, replicas []string
	var follow bool
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Ask for a pass over the source's present state", Args: cobra.NoArgs,
		Long: `Asks capture to read the mapped tables as they are now, beside the log. What the replicas do not have yet they get, counted as
reconciled; who is not in the source any more is listed, never erased. A new replica is incomplete until its first pass has ended.

The request is written to Kafka and no process is asked: the running capture takes it up within seconds, else the next one that
starts. Passes are made one after the other; each can be interrupted and goes on where it was. Capture makes passes by
itself too: at first, for a new table or replica, and every source.pass.every.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withPasses(cmd, func(d *app.PassDesk) error {
				id, err := d.Ask(cmd.Context(), tables, replicas)
				if err != nil {
					return err
				}
				return g.asked(cmd, d, id, follow, map[string]any{"request": id})
			})
		},
	}
	cmd.Flags().StringArrayVar(&tables, "table", nil, "a table (schema.table); may be repeated; default: every one that rules read")
	cmd.Flags().StringArrayVar(&replicas, "replica", nil, "a replica that the pass is for; may be repeated; default: all")
	followFlag(cmd, &follow)
	cmd.AddCommand(snapshotStatus(g), snapshotCancel(g))
	return cmd
}

func followFlag(cmd *cobra.Command, follow *bool) {
	cmd.Flags().BoolVar(follow, "follow", terminal(os.Stdout), "show how far the pass is until it ends; default on a terminal")
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

func (g *globals) withPasses(cmd *cobra.Command, f func(*app.PassDesk) error) error {
	cfg, err := g.load()
	if err != nil {
		return err
	}
	d, err := app.OpenPasses(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// asked tells of a request that was written, and follows its pass where that is wanted.
func (g *globals) asked(cmd *cobra.Command, d *app.PassDesk, id string, follow bool, answer map[string]any) error {
	if g.json && !follow {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	if !g.json {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "pass %s is asked for; `lethe snapshot status` tells how far it is\n", id); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	p, err := g.follow(cmd.Context(), cmd.OutOrStdout(), d, id)
	if err != nil {
		return err
	}
	if g.json {
		err = printJSON(cmd.OutOrStdout(), p)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), passText(p, ""))
	}
	if err == nil && (p.State == "cancelled" || refusedTables(p) > 0) {
		err = fmt.Errorf("the pass %s did not read every table that it was asked for", p.RequestID)
	}
	return err
}

func refusedTables(p *app.PassInfo) (n int) {
	for _, t := range p.Tables {
		if t.State == "refused" {
			n++
		}
	}
	return n
}

func snapshotStatus(g *globals) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "status", Short: "Tell how far the pass is that is being made, or was last", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withPasses(cmd, func(d *app.PassDesk) error {
				r, err := d.Report(cmd.Context())
				if err == nil && follow && r.Pass != nil && r.Pass.Live {
					if r.Pass, err = g.follow(cmd.Context(), cmd.OutOrStdout(), d, r.Pass.RequestID); err == nil && !g.json {
						_, err = io.WriteString(cmd.OutOrStdout(), passText(r.Pass, ""))
						return err
					}
				}
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), r)
				}
				text := "no pass yet\n"
				if r.Pass != nil {
					text = passText(r.Pass, "")
				}
				for _, q := range r.Waiting {
					text += fmt.Sprintf("asked for: %s (%s) since %s\n", q.ID, q.Cause, moment(q.RequestedAt))
				}
				_, err = io.WriteString(cmd.OutOrStdout(), text)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "show how far the pass is until it ends")
	return cmd
}

func snapshotCancel(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "cancel [ID]", Short: "Take a pass back: the one that is being made, or a request that waits", Args: cobra.MaximumNArgs(1),
		Long: `Ends the pass within seconds, or takes the request away. What it has published stays: it is true. The replicas that it was for stay
incomplete, and gaps that it was to close stay open.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withPasses(cmd, func(d *app.PassDesk) error {
				id, err := d.Cancel(cmd.Context(), strings.Join(args, ""))
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), map[string]string{"request": id, "state": "cancelled"})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "pass %s ends within seconds, where capture runs\n", id)
				return err
			})
		},
	}
}

// passText tells of a pass in lines that begin with indent.
func passText(p *app.PassInfo, indent string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%spass %s (%s): %s, %s", indent, p.RequestID, p.Cause, p.State, rowsText(p.Rows, p.Estimate, p.Live))
	if p.Live {
		fmt.Fprintf(&b, ", since %s", moment(p.StartedAt))
	} else {
		fmt.Fprintf(&b, ", ended %s", moment(p.EndedAt))
	}
	if p.Restarts > 0 {
		fmt.Fprintf(&b, ", begun anew %d times", p.Restarts)
	}
	b.WriteByte('\n')
	if p.Waiting != "" {
		fmt.Fprintf(&b, "%s  waits for %s\n", indent, p.Waiting)
	}
	for _, t := range p.Tables {
		fmt.Fprintf(&b, "%s  %s: %s, %s\n", indent, t.Name, t.State, rowsText(t.Rows, t.Estimate, t.State == "reading"))
		if t.Hint != "" {
			fmt.Fprintf(&b, "%s    %s: %s\n", indent, t.Cause, t.Hint)
		}
	}
	if len(p.Closes) > 0 {
		fmt.Fprintf(&b, "%s  gaps closed: %d of %d\n", indent, len(p.Closed), len(p.Closes))
	}
	return b.String()
}

func rowsText(rows uint64, estimate int64, about bool) string {
	if about && estimate > 0 {
		return fmt.Sprintf("%d of about %d rows", rows, estimate)
	}
	return fmt.Sprintf("%d rows", rows)
}

// followEvery is how often the progress is read.
const followEvery = time.Second

// follow shows how far the pass of a request is until it ends.
func (g *globals) follow(ctx context.Context, w io.Writer, d *app.PassDesk, id string) (*app.PassInfo, error) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	line := progress{w: w, live: terminal(w), quiet: g.json}
	for {
		r, err := d.Report(ctx)
		if err != nil {
			return nil, err
		}
		switch p := r.Pass; {
		case p != nil && p.RequestID == id && !p.Live:
			return p, line.end()
		case p != nil && p.RequestID == id:
			err = line.show(p, time.Now())
		default:
			err = line.say("waiting for capture to take it up; is `lethe run` up?")
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// progress is one line that is written again and again, on a terminal; elsewhere a line for each change of state.
type progress struct {
	w     io.Writer
	live  bool
	quiet bool

	said  string
	since time.Time
	first uint64 // rows at since
	width int
}

// show writes the bar, with the rate since the pass was first looked at and what is left at that rate.
func (l *progress) show(p *app.PassInfo, now time.Time) error {
	if l.since.IsZero() || p.Rows < l.first {
		l.since, l.first = now, p.Rows
	}
	if !l.live {
		return l.say(p.State)
	}
	const cells = 24
	bar, part := strings.Repeat("·", cells), ""
	if p.Estimate > 0 {
		done := min(float64(p.Rows)/float64(p.Estimate), 1)
		n := int(done * cells)
		bar, part = strings.Repeat("█", n)+strings.Repeat("·", cells-n), fmt.Sprintf(" %3.0f %%", 100*done)
	}
	text := fmt.Sprintf("%s%s  %s", bar, part, rowsText(p.Rows, p.Estimate, true))
	if rate := float64(p.Rows-l.first) / now.Sub(l.since).Seconds(); now.After(l.since) && rate > 0 {
		text += fmt.Sprintf("  %.0f/s", rate)
		if left := float64(p.Estimate) - float64(p.Rows); left > 0 {
			text += "  ETA " + round(left/rate)
		}
	}
	if p.Waiting != "" {
		text += "  waits"
	}
	return l.write("\r" + text)
}

func (l *progress) say(text string) error {
	if text == l.said {
		return nil
	}
	l.said = text
	if l.live {
		return l.write("\r" + text)
	}
	return l.write(text + "\n")
}

// write covers what is left of a longer line.
func (l *progress) write(text string) error {
	if l.quiet {
		return nil
	}
	if l.live {
		n := len([]rune(text))
		pad := max(l.width-n, 0)
		l.width = n
		text += strings.Repeat(" ", pad)
	}
	_, err := io.WriteString(l.w, text)
	return err
}

func (l *progress) end() error {
	if !l.live || l.width == 0 {
		return nil
	}
	return l.write("\r\n")
}

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func gapCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "gap", Short: "List gaps of the source's log, and let capture go on behind one",
		Long: `A gap is a part of the source's log that is lost to Lethe: a slot that the server gave up, a binary
log that was purged, a restored source, a TRUNCATE. While one is open nothing is called verified. It is closed by a pass over the
source's present state, which makes good for what the log lacks.`,
	}
	cmd.AddCommand(gapList(g), gapResume(g), gapClose(g))
	return cmd
}

func gapList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List gaps as capture and the replicas know them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.Gaps(cmd.Context(), cfg)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			err = table(cmd.OutOrStdout(), "GAP\tCAUSE\tKNOWN TO\tOPENED\tSTATE", func(w io.Writer) {
				for _, c := range list.Capture {
					state := "open"
					switch {
					case c.Blocks:
						state = "open, capture stands still"
					case c.Resumed:
						state = "open, resumed"
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\tcapture\t%s\t%s\n", c.ID, c.Cause, moment(c.OpenedAt), state) // table reports the first failure
				}
				for _, r := range list.Replicas {
					state := "open"
					if !r.ClosedAt.IsZero() {
						state = "closed " + moment(r.ClosedAt)
					} else if r.Closed > 0 {
						state = fmt.Sprintf("open, closed in %d of %d partitions", r.Closed, r.Known)
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.Cause, r.Replica, moment(r.OpenedAt), state)
				}
			})
			return errors.Join(failed, err)
		},
	}
}

func gapResume(g *globals) *cobra.Command {
	var accept bool
	cmd := &cobra.Command{
		Use: "resume", Short: "Let capture go on from where the log stands, although a part of it is lost", Args: cobra.NoArgs,
		Long: `Lets capture go on from where the slot stands, or where the binary log ends, although what the CRM wrote in between was
not seen and never will be from the log: erasures and withdrawals among it are missing in the replicas. The gap stays open, and
nothing is called verified, until a pass over the source's present state has closed it: ` + "`lethe gap close`" + ` asks for one. The
incarnation is raised, so that what is captured from now on is newer than all before. A slot that is gone is made
again by ` + "`lethe setup`" + ` first.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !accept {
				return usageError{errors.New("read `lethe gap resume --help`, then say --accept-loss")}
			}
			cfg, err := g.load()
			if err != nil {
				return err
			}
			c, err := app.ResumeGap(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"incarnation": c.Incarnation, "gaps_open": len(c.Gaps)})
			}
			stay := "1 gap stays"
			if n := len(c.Gaps); n != 1 {
				stay = strconv.Itoa(n) + " gaps stay"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "capture goes on, within seconds where it runs, as incarnation %d; %s open until `lethe gap close`\n",
				c.Incarnation, stay)
			return err
		},
	}
	cmd.Flags().BoolVar(&accept, "accept-loss", false, "yes: a part of the log is lost and capture goes on behind it")
	return cmd
}

func gapClose(g *globals) *cobra.Command {
	var all, follow bool
	cmd := &cobra.Command{
		Use: "close [GAP...]", Short: "Close gaps by a pass over the source's present state",
		Long: `Asks for a pass over every table. When it has ended, the gaps are closed in every replica, and what is waiting because of them may be
verified. What the pass cannot show is who was erased by deletion while nobody looked: the replicas list whom it did not show. A gap at
which capture stands still is resumed first.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return usageError{errors.New("name the gaps, or say --all: `lethe gap list` shows them")}
			}
			return g.withPasses(cmd, func(d *app.PassDesk) error {
				id, gaps, err := d.CloseGaps(cmd.Context(), args)
				if err != nil {
					return err
				}
				if len(gaps) == 0 {
					if g.json {
						return printJSON(cmd.OutOrStdout(), map[string]any{"gaps": []string{}})
					}
					_, err = fmt.Fprintln(cmd.OutOrStdout(), "no gap is open")
					return err
				}
				return g.asked(cmd, d, id, follow, map[string]any{"request": id, "gaps": gaps})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every gap that is open")
	followFlag(cmd, &follow)
	return cmd
}

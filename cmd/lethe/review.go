package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func reviewCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "review", Short: "Decide whether rows of a replica are a person, where nothing says it for certain",
		Long: `Where a replica does not have the CRM's key, a person is found by keyed forms of contact points, name and birth date. What forbids
applies to every row that may be the person's; a permission and an erasure need one that certainly is. All others wait here for
somebody to look at both sides, and stay suppressed meanwhile. What was decided is remembered.`,
	}
	cmd.AddCommand(reviewList(g), reviewShow(g), reviewDecide(g))
	return cmd
}

func reviewList(g *globals) *cobra.Command {
	var (
		replica string
		all     bool
		limit   int
	)
	cmd := &cobra.Command{
		Use: "list", Short: "List what is to be decided, the strongest evidence first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.Reviews(cmd.Context(), cfg, replica, all, limit)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			err = table(cmd.OutOrStdout(), "REPLICA\tID\tKIND\tROW\tAGREES\tCASE\tDUE\tDECIDED", func(w io.Writer) {
				for i := range list {
					r := &list[i]
					due, decided := moment(r.DueAt), dash(r.Decision)
					if r.Overdue {
						due += " (overdue)"
					}
					if r.DecidedBy != "" {
						decided += " by " + r.DecidedBy
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Replica, r.ID, r.Kind, r.Person, r.Evidence, dash(r.Case), due, decided) // table reports the first failure
				}
			})
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().StringVar(&replica, "replica", "", "of one replica only")
	cmd.Flags().BoolVar(&all, "all", false, "also what is decided")
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "at most so many of each replica")
	return cmd
}

func reviewShow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "show REPLICA ID", Short: "Show both sides of a review, read live: this prints personal data", Args: cobra.ExactArgs(2),
		Long: `Reads what the source and the replica say of the two people now, and prints it for whoever decides. It is stored and logged nowhere:
do not redirect it into a file. It needs the operator's keys.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if g.json {
				return usageError{errors.New("review show prints personal data for a person to read: it has no --json")}
			}
			shown, failed := app.ReviewCase(cmd.Context(), cfg, args[0], args[1])
			if shown == nil {
				return failed
			}
			var b strings.Builder
			fmt.Fprintf(&b, "review %s of replica %s: %s, row %s, agrees: %s", shown.ID, shown.Replica, shown.Kind, shown.Person, shown.Evidence)
			if shown.Rivals > 0 {
				fmt.Fprintf(&b, "; %d other people of the source hold one of these keys", shown.Rivals)
			}
			b.WriteString("\n")
			sides(&b, "source", shown.Source)
			sides(&b, "replica", shown.Found)
			if len(shown.Found) == 0 {
				b.WriteString("replica: the row is gone\n")
			}
			_, err = io.WriteString(cmd.OutOrStdout(), b.String())
			return errors.Join(failed, err)
		},
	}
}

// sides prints rows for the eyes of whoever decides: the one place where values are revealed.
func sides(b *strings.Builder, name string, list []app.ReviewSide) {
	for _, s := range list {
		fmt.Fprintf(b, "%s: %s\n", name, s.Table)
		for i, c := range s.Columns {
			fmt.Fprintf(b, "  %-20s %s\n", c, dash(s.Values[i].Reveal()))
		}
	}
}

func reviewDecide(g *globals) *cobra.Command {
	var by string
	var same, different bool
	cmd := &cobra.Command{
		Use: "decide REPLICA ID", Short: "Record that a row is the person, or is somebody else's", Args: cobra.ExactArgs(2),
		Long: `Records the decision with who made it. The pair is remembered: nobody is asked about it again. With --same what was said of the person
applies to the row at once, and an erasure takes it in when it is due; with --different nothing of the person applies to it any more.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if same == different {
				return usageError{errors.New("say either --same or --different")}
			}
			if err := app.CheckActor(by); err != nil {
				return usageError{err}
			}
			if err := app.DecideReview(cmd.Context(), cfg, args[0], args[1], same, by); err != nil {
				return err
			}
			return said(cmd, g, args[0], fmt.Sprintf("review %s is decided; the sink acts on it within seconds", args[1]))
		},
	}
	cmd.Flags().BoolVar(&same, "same", false, "the row is the person's")
	cmd.Flags().BoolVar(&different, "different", false, "the row is somebody else's")
	byFlag(cmd, &by)
	return cmd
}

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func planCommand(g *globals) *cobra.Command {
	var replica string
	cmd := &cobra.Command{
		Use: "plan KEY...", Short: "Say what erasing one person would touch in each replica, and touch nothing", Args: cobra.MinimumNArgs(1),
		Long: `Looks for the person with this CRM key in every replica, in a read-only transaction, and counts the rows that each phase
would touch. Both phases are listed in every mode; what the present mode leaves out is marked. A composite key is given as
several arguments, in the order of source.subject.key. It prints keys of the replica and counts, nothing else of the person.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.Plan(cmd.Context(), cfg, replica, args)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			var b strings.Builder
			for _, p := range list {
				fmt.Fprintf(&b, "replica %s (%s): ", p.Replica, p.Mode)
				if p.Found == 0 {
					b.WriteString("no row; an erasure would be looked up again until one appears\n")
				} else {
					fmt.Fprintf(&b, "%d rows, key %s\n", p.Found, strings.Join(p.Persons, ", "))
				}
				for _, s := range p.Steps {
					fmt.Fprintf(&b, "  phase %d  %-9s %s: %d rows by %s", s.Phase, s.Action, s.Table, s.Rows, s.By)
					if len(s.Columns) > 0 {
						fmt.Fprintf(&b, " (%s)", strings.Join(s.Columns, ", "))
					}
					if !s.Active {
						fmt.Fprintf(&b, " [not done in mode %s]", p.Mode)
					}
					b.WriteByte('\n')
				}
			}
			_, err = io.WriteString(cmd.OutOrStdout(), b.String())
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().StringVar(&replica, "replica", "", "in one replica only")
	return cmd
}

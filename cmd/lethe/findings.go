package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func findingsCommand(g *globals) *cobra.Command {
	var (
		replica string
		limit   int
	)
	cmd := &cobra.Command{
		Use: "findings", Short: "List what the replicas have found about people that somebody ought to look at", Args: cobra.NoArgs,
		Long: `Grants that were refused or have no legal basis, people whom a pass did not show, contact points that came up after an erasure or
that several people hold. People are shown under the replica's own references, as in its tables.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.Findings(cmd.Context(), cfg, replica, limit)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			err = table(cmd.OutOrStdout(), "REPLICA\tKIND\tTIMES\tLAST\tSUBJECT\tSCOPE\tMEANS", func(w io.Writer) {
				for i := range list {
					f := &list[i]
					last := "-"
					if !f.LastAt.IsZero() {
						last = moment(f.LastAt)
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", f.Replica, f.Kind, f.Times, last, dash(f.Subject), dash(f.Scope),
						f.Means) // table reports the first failure
				}
			})
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().StringVar(&replica, "replica", "", "of one replica only")
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "at most so many of each replica, the newest first")
	return cmd
}

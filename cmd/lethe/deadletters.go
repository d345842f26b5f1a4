package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func deadLettersCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "dead-letters", Short: "List, replay or discard events that a replica refused",
		Long: `An event that a replica refuses is parked in that replica, and so is what comes behind it for the same person, except what
forbids: erasures, objections, restrictions and withdrawals still pass.`,
	}
	cmd.AddCommand(deadLettersList(g), deadLettersSettle(g, "replay", "Have parked events applied once more", false),
		deadLettersSettle(g, "discard", "Leave parked events away for good; that is recorded", true))
	return cmd
}

func deadLettersList(g *globals) *cobra.Command {
	var (
		replica string
		done    bool
		limit   int
	)
	cmd := &cobra.Command{
		Use: "list", Short: "List parked events", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.DeadLetters(cmd.Context(), cfg, replica, done, limit)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			err = table(cmd.OutOrStdout(), "REPLICA\tPLACE\tEVENT\tCODE\tTRIES\tPARKED\tWANTED\tOUTCOME", func(w io.Writer) {
				for i := range list {
					p := &list[i]
					_, _ = fmt.Fprintf(w, "%s\t%d:%d\t%s\t%s\t%d\t%s\t%s\t%s\n", p.Replica, p.Partition, p.Offset, dash(p.EventID), p.Code, p.Tries,
						moment(p.ParkedAt), dash(p.Want), dash(p.Outcome)) // table reports the first failure
				}
			})
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().StringVar(&replica, "replica", "", "of one replica only")
	cmd.Flags().BoolVar(&done, "all", false, "also those that were replayed or discarded")
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "at most so many of each replica")
	return cmd
}

func deadLettersSettle(g *globals, name, short string, discard bool) *cobra.Command {
	var by string
	cmd := &cobra.Command{
		Use: name + " REPLICA PARTITION:OFFSET...", Short: short, Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if err := app.CheckActor(by); err != nil {
				return usageError{err}
			}
			places := make([]app.Place, len(args)-1)
			for i, text := range args[1:] {
				if places[i], err = parsePlace(text); err != nil {
					return usageError{err}
				}
			}
			if err := app.SettleDeadLetters(cmd.Context(), cfg, args[0], places, discard, by); err != nil {
				return err
			}
			return said(cmd, g, args[0], fmt.Sprintf("%s of %d parked events is recorded; the sink does it within seconds", name, len(places)))
		},
	}
	byFlag(cmd, &by)
	return cmd
}

func parsePlace(text string) (p app.Place, err error) {
	partition, offset, ok := strings.Cut(text, ":")
	part, partErr := strconv.ParseInt(partition, 10, 32)
	off, offErr := strconv.ParseInt(offset, 10, 64)
	if !ok || partErr != nil || offErr != nil || part < 0 || off < 0 {
		return p, fmt.Errorf("%q: want PARTITION:OFFSET as `lethe dead-letters list` shows it", text)
	}
	return app.Place{Partition: int32(part), Offset: off}, nil
}

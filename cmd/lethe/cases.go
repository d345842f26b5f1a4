package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/internal/app"
	"lethe/schema"
	"lethe/sinks/ledger"
)

func casesCommand(g *globals) *cobra.Command {
	var (
		replica string
		open    bool
		limit   int
	)
	cmd := &cobra.Command{
		Use: "cases", Short: "List erasures by case and replica", Args: cobra.NoArgs,
		Long: `Lists every erasure by case and replica: where it stands, what it waits for, and the state of its effective receipt. A case
names no person: its id is derived with a key.

SOURCE is what the source was found to say: complete_at_source, incomplete_at_source with the columns that are left, revived_at_source,
unauthorised_at_source (there is no request on file), and what the gate says with the checks that fail. RECEIVED and LEGALLY DUE
are those of the request (GDPR Art. 12(3)); what is not known is called unknown.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, failed := app.Cases(cmd.Context(), cfg, replica, open, limit)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			err = table(cmd.OutOrStdout(), "CASE\tREPLICA\tSTATE\tWAITS FOR\tRECEIPT\tSINCE\tDUE\tATTEMPTS\tERROR\tPASS\tSOURCE\tRECEIVED\tLEGALLY DUE", func(w io.Writer) {
				for i := range list {
					c := &list[i]
					due := moment(c.Due)
					if c.Overdue {
						due += " (overdue)"
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", c.Case, c.Replica, c.State, c.WaitsFor(), dash(c.Receipt), moment(c.Since),
						due, c.Attempts, dash(c.ErrorCode), dash(c.Run), sourceOfCase(c), known(c.ReceivedAt), legallyDue(c)) // table reports the first failure
				}
			})
			codes := map[string]bool{}
			for i := range list {
				if list[i].State != "verified" {
					codes[list[i].ErrorCode] = true
				}
			}
			_, stepErr := io.WriteString(cmd.OutOrStdout(), nextSteps(slices.Sorted(maps.Keys(codes)), ""))
			return errors.Join(failed, err, stepErr)
		},
	}
	cmd.Flags().StringVar(&replica, "replica", "", "of one replica only")
	cmd.Flags().BoolVar(&open, "open", false, "only those that are neither proven nor cancelled")
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "at most so many of each replica, the newest first")
	return cmd
}

// sourceOfCase says in one word what the source was found to say, with what is left.
func sourceOfCase(c *app.CaseInfo) string {
	parts := []string{}
	for _, state := range c.States {
		if state == ledger.SourceIncomplete {
			state += "(" + strings.Join(c.Missing, ",") + ")"
		}
		parts = append(parts, state)
	}
	if c.Gate != "" {
		gate := "gate:" + c.Gate
		if len(c.GateChecks) > 0 {
			gate += "(" + strings.Join(c.GateChecks, ",") + ")"
		}
		parts = append(parts, gate)
	}
	return dash(strings.Join(parts, " "))
}

func known(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return moment(t)
}

func legallyDue(c *app.CaseInfo) string {
	due := known(c.LegalDueAt)
	if c.Overdue {
		due += " overdue"
	}
	return due
}

const defaultLimit = 1000

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

var decisions = map[string]struct{ short, long string }{
	"release": {
		"Let cases go on to phase 2 that are held, wait for a decision, stand at the breaker, or have failed",
		"Lets cases go on that are held, wait for a decision, stand at the breaker, or have failed. A case of a pass takes the others of its pass with it; --run names the pass in the place of a case.",
	},
	"hold": {
		"Keep cases from phase 2 until they are released",
		"Keeps cases from phase 2 until they are released. The copies stay suppressed.",
	},
	"cancel": {
		"Take phase 1 back and close cases, where phase 2 has not run yet",
		"Takes phase 1 back: the replica's flags return to what they were, then consents and objections are applied. Once phase 2 has run nothing can be taken back.",
	},
}

func decisionCommand(g *globals, name string) *cobra.Command {
	var o app.DecideOptions
	cmd := &cobra.Command{
		Use: name + " CASE...", Short: decisions[name].short,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.Run != "" {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.MinimumNArgs(1)(cmd, args)
		},
		Long: decisions[name].long + `

The decision is an event in the log like any other, signed for by --by, and reaches each sink behind everything that was
said of the person before. It needs the operator's keys.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if o.Decision, err = schema.ParseDecision(name); err != nil {
				return err
			}
			o.Cases = args
			if err := app.CheckActor(o.By); err != nil {
				return usageError{err}
			}
			list, failed := app.Decide(cmd.Context(), cfg, o)
			if g.json {
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), list))
			}
			var b strings.Builder
			for _, d := range list {
				fmt.Fprintf(&b, "%s %s: published as %s\n", name, d.Case, d.EventID)
				if d.Waiting > 0 {
					fmt.Fprintf(&b, "  with all %d cases of pass %s\n", d.Waiting, d.Run)
				}
				for _, replica := range slices.Sorted(maps.Keys(d.Outcomes)) {
					fmt.Fprintf(&b, "  %s: %s\n", replica, d.Outcomes[replica])
				}
			}
			_, err = io.WriteString(cmd.OutOrStdout(), b.String())
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().StringVar(&o.Replica, "replica", "", "in one replica only")
	cmd.Flags().StringVar(&o.Reason, "reason", "", "a code of small letters, digits and _")
	byFlag(cmd, &o.By)
	if name == "release" {
		cmd.Flags().StringVar(&o.Run, "run", "", "all cases that this pass has found, in the place of CASE...")
	}
	cmd.Flags().DurationVar(&o.Wait, "wait", 0, "wait so long for the replicas to carry it out, for example 30s")
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait.String()
	return cmd
}

const defaultWait = 30 * time.Second

func byFlag(cmd *cobra.Command, by *string) {
	cmd.Flags().StringVar(by, "by", "", "who decides: a role or a pseudonym, never a person's name or address")
}

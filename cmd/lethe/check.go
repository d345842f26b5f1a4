package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lethe/capture"
	"lethe/internal/app"
)

func checkCommand(g *globals) *cobra.Command {
	var (
		roles  []string
		fixSQL bool
	)
	cmd := &cobra.Command{
		Use: "check", Short: "Look at every precondition, and print the statement that mends each fault",
		Long: `Looks at the config file, the keys, Kafka, the source and every replica with Lethe's own logins, and changes nothing.

--fix-sql prints the statements alone, grouped by server and in the order in which they depend on each other; those for warnings
are comments. With --role one server's can be piped into psql or mysql as its owner:

  lethe check --fix-sql --role sink=marketing | psql -h marketing-db -U owner marketing
  lethe check --fix-sql --role capture | mysql -h crm-db -u owner -p crm

Exit codes: 0 nothing that run would refuse, 5 findings of severity error, 4 a server cannot be reached, 3 a gap is open.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if err := checkRoles(cfg, roles); err != nil {
				return err
			}
			r, err := app.Check(cmd.Context(), cfg, roles)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case fixSQL:
				err = printFixes(out, r)
			case g.json:
				err = printJSON(out, r)
			default:
				err = printFindings(out, r)
			}
			if err != nil {
				return err
			}
			return verdict(r)
		},
	}
	cmd.Flags().StringSliceVar(&roles, "role", nil, "look only at what this role needs: capture or sink=REPLICA (default: all)")
	cmd.Flags().BoolVar(&fixSQL, "fix-sql", false, "print only the statements, for psql or mysql; commands for Kafka come as comments")
	return cmd
}

// verdict makes the exit code of a check.
func verdict(r *app.Report) error {
	switch {
	case len(r.Errors()) > 0:
		return errFindings
	case len(r.Unreachable) > 0:
		return fmt.Errorf("%w: %s", app.ErrUnreachable, strings.Join(r.Unreachable, ", "))
	case r.Gap:
		return &capture.GapError{Cause: "open", Hint: "`lethe gap list` shows it"}
	}
	return nil
}

func printFindings(w io.Writer, r *app.Report) error {
	var b strings.Builder
	where := ""
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Where != where {
			where = f.Where
			b.WriteString(where + "\n")
		}
		fmt.Fprintf(&b, "  %-7s %s: %s (%s)\n", f.Severity, f.Object, f.Message, f.Code)
		for _, fix := range f.Fix {
			b.WriteString("          " + strings.ReplaceAll(fix, "\n", "\n          ") + "\n")
		}
	}
	switch n := len(r.Errors()); {
	case n > 0:
		errors := "errors"
		if n == 1 {
			errors = "error"
		}
		fmt.Fprintf(&b, "%d %s: run would refuse; `lethe check --fix-sql` prints the statements alone\n", n, errors)
	case len(r.Unreachable) > 0:
		fmt.Fprintf(&b, "not everything could be looked at: %s\n", strings.Join(r.Unreachable, ", "))
	default:
		b.WriteString("everything that run needs is there\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func commented(lines []string, end string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("-- " + strings.ReplaceAll(l, "\n", "\n-- ") + end + "\n")
	}
	return b.String()
}

// printFixes prints what psql or mysql can run: what mends errors. What is no SQL, or mends a warning, becomes a comment.
func printFixes(w io.Writer, r *app.Report) error {
	var b strings.Builder
	where := ""
	for i := range r.Findings {
		f := &r.Findings[i]
		if len(f.Fix) == 0 {
			continue
		}
		if f.Where != where {
			where = f.Where
			fmt.Fprintf(&b, "-- %s\n", where)
		}
		switch {
		case !f.IsSQL():
			b.WriteString(commented(f.Fix, ""))
		case f.Severity != app.SeverityError:
			fmt.Fprintf(&b, "-- optional: %s: %s (%s)\n%s", f.Object, strings.ReplaceAll(f.Message, "\n", " "), f.Code, commented(f.Fix, ";"))
		default:
			b.WriteString(strings.Join(f.Fix, ";\n") + ";\n")
		}
	}
	for i := range r.Findings {
		if f := &r.Findings[i]; len(f.Fix) == 0 && f.Severity == app.SeverityError {
			fmt.Fprintf(&b, "-- no statement mends this: %s: %s: %s\n", f.Where, f.Object, strings.ReplaceAll(f.Message, "\n", " "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lethe/internal/demo"
)

func demoCommand(g *globals) *cobra.Command {
	o := demo.Options{}
	cmd := &cobra.Command{
		Use: "demo", Short: "Try Lethe out: a CRM, two replicas and a broker, and a working day played on them",
		Long: `Starts three real database servers (a magazine publisher's CRM, a marketing and a reporting replica), a broker inside
this process and Lethe, all in a temporary folder that is removed in the end; fills the CRM with invented customers and
plays a working day on it: ordinary writes, consents, erasures, an ETL that comes late. Then it compares every copy with
what the CRM asks for, and greps everything that Lethe left behind for the marked customers' values.

The servers are PostgreSQL; --source and --marketing put the CRM and the marketing replica on MySQL or MariaDB.

The exit code is 0 only if everything followed, was verified and leaked nothing; 130 if it was stopped.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Version = version
			o.Out = cmd.OutOrStdout()
			if g.json {
				o.Out = nil
			}
			summary, err := demo.Run(cmd.Context(), o)
			if summary == nil {
				return err
			}
			if g.json {
				return errors.Join(printJSON(cmd.OutOrStdout(), summary), err)
			}
			_, printErr := fmt.Fprint(cmd.OutOrStdout(), summary.Text())
			return errors.Join(printErr, err)
		},
	}
	cmd.Flags().DurationVar(&o.For, "for", 30*time.Second, "how long the day is")
	cmd.Flags().IntVar(&o.Customers, "customers", 10_000, "how many customers the CRM has")
	cmd.Flags().IntVar(&o.Rate, "rate", 200, "transactions a second")
	cmd.Flags().DurationVar(&o.CoolOff, "cool-off", 2*time.Second, "between suppressing a copy and erasing it")
	cmd.Flags().StringVar(&o.Source, "source", demo.Postgres, "what the CRM runs on: postgres, mysql or mariadb")
	cmd.Flags().StringVar(&o.Marketing, "marketing", demo.Postgres, "what the marketing replica runs on: postgres, mysql or mariadb")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the folder behind")
	return cmd
}

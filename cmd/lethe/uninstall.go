package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func uninstallCommand(g *globals) *cobra.Command {
	var printSQL bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Print the statements that take away everything that setup made", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !printSQL {
				return usageError{errors.New("lethe takes nothing away itself: --print-sql prints the statements for the owners to run")}
			}
			cfg, err := g.load()
			if err != nil {
				return err
			}
			sql, failed := app.Uninstall(cmd.Context(), cfg)
			_, err = io.WriteString(cmd.OutOrStdout(), sql)
			return errors.Join(failed, err)
		},
	}
	cmd.Flags().BoolVar(&printSQL, "print-sql", false, "print the statements")
	return cmd
}

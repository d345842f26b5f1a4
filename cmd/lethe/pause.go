package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func pauseCommand(g *globals) *cobra.Command {
	var by string
	cmd := &cobra.Command{
		Use: "pause REPLICA", Short: "Hold a replica: nothing is applied there until it is resumed", Args: cobra.ExactArgs(1),
		Long: `Holds a replica: no batch is applied and nothing that is due is done there until ` + "`lethe resume`" + `. Erasures and
withdrawals wait too, so it is meant for minutes. A batch under way still commits. Capture and other replicas go on.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if err := app.Pause(cmd.Context(), cfg, args[0], by); err != nil {
				return err
			}
			return said(cmd, g, args[0], "paused")
		},
	}
	byFlag(cmd, &by)
	return cmd
}

func resumeCommand(g *globals) *cobra.Command {
	var by string
	cmd := &cobra.Command{
		Use: "resume REPLICA", Short: "Let a paused replica go on", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if err := app.Resume(cmd.Context(), cfg, args[0], by); err != nil {
				return err
			}
			return said(cmd, g, args[0], "goes on within seconds")
		},
	}
	byFlag(cmd, &by)
	return cmd
}

func said(cmd *cobra.Command, g *globals, replica, what string) error {
	if g.json {
		return printJSON(cmd.OutOrStdout(), map[string]string{"replica": replica, "state": what})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "replica %s: %s\n", replica, what)
	return err
}

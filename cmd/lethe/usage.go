package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// strict makes every fault of the command line a usageError: an unknown command and a wrong number of arguments too.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError{fmt.Errorf("%s has no command %q: see `%[1]s --help`", cmd.CommandPath(), args[0])}
		}
		return
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
			}
			return nil
		}
	}
}

package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	requireFlags(cmd)
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
			}
			return nil
		}
	}
}

// requireFlags takes over from cobra, whose error for a missing flag has no type.
func requireFlags(cmd *cobra.Command) {
	var required []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if _, ok := f.Annotations[cobra.BashCompOneRequiredFlag]; ok {
			required = append(required, f.Name)
			delete(f.Annotations, cobra.BashCompOneRequiredFlag)
		}
	})
	run := cmd.RunE
	if len(required) == 0 || run == nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range required {
			if !cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is required: see `%s --help`", name, cmd.CommandPath())}
			}
		}
		return run(cmd, args)
	}
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lethe/config"
)

func initCommand(g *globals) *cobra.Command {
	var source, replica string
	cmd := &cobra.Command{
		Use: "init", Short: "Write a commented starter config file, unless there is one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := config.Example(source, replica)
			if err != nil {
				return usageError{err}
			}
			if err := writeNew(g.config, text); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `wrote %s
Next: put your own names into it and the passwords into their files (chmod 600), then
  lethe keys init     make the keys
  lethe check         see what is missing, with the statement that mends each fault
  lethe setup         have Lethe run those statements with an owner's login
  lethe run
`, g.config)
			return err
		},
	}
	kinds := strings.Join(config.Databases(), " or ")
	cmd.Flags().StringVar(&source, "source", "postgres", kinds+": the database of the CRM; MariaDB is mysql")
	cmd.Flags().StringVar(&replica, "replica", "postgres", kinds+": the database of the replica")
	return cmd
}

// writeNew writes a file that does not exist yet.
func writeNew(name, content string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return fmt.Errorf("making the folder of the config file: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640) //nolint:gosec // the operator names the file
	if errors.Is(err, fs.ErrExist) {
		return usageError{fmt.Errorf("%s exists already and is left as it is; --config names another file", name)}
	}
	if err != nil {
		return fmt.Errorf("writing the config file: %w", err)
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the config file: %w", err)
	}
	return nil
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"lethe/config"
)

// defaultConfig is where the packages put it.
const defaultConfig = "/etc/lethe/lethe.yaml"

// globals are the flags that every command has.
type globals struct {
	config string
	json   bool
}

func rootCommand() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "lethe",
		Short: "Make erasures and consent changes of a CRM follow into every copy, and prove it",
		Long: `Lethe tails the replication log of a company's primary customer database, recognises erasures and consent
changes, publishes them to Kafka, and makes the copies in marketing and reporting databases unusable, exactly once in
effect, with a signed receipt for each.`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVarP(&g.config, "config", "c", defaultConfig, "the config file")
	root.PersistentFlags().BoolVar(&g.json, "json", false, "print JSON where a program may read it")
	root.AddCommand(
		runCommand(g), setupCommand(g), checkCommand(g), initCommand(g), planCommand(g), statusCommand(g), casesCommand(g),
		decisionCommand(g, "release"), decisionCommand(g, "hold"), decisionCommand(g, "cancel"), pauseCommand(g), resumeCommand(g),
		gapCommand(g), snapshotCommand(g), deadLettersCommand(g), findingsCommand(g), reviewCommand(g), keysCommand(g), uninstallCommand(g), demoCommand(g), versionCommand(g),
	)
	strict(root)
	return root
}

// load reads the config file. One that cannot be read is a fault of the command line.
func (g *globals) load() (*config.Config, error) {
	cfg, err := config.Load(g.config)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: `lethe init` writes a starter file, --config names another one", err)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// printJSON writes v as one indented document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

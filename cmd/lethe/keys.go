package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lethe/internal/app"
	"lethe/internal/keys"
)

func keysCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make, list, rotate, retire and export keysets"}
	cmd.AddCommand(keysInit(g), keysList(g), keysRotate(g), keysRetire(g), keysExport(g))
	return cmd
}

func keysInit(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Make the keysets that are missing for this config; never overwrites", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			made, err := keys.Init(cfg.Keys.Dir, app.ReplicaNames(cfg))
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"dir": cfg.Keys.Dir, "made": made})
			}
			if len(made) == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "nothing to make: every keyset is in %s\n", cfg.Keys.Dir)
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "made in %s: %s\nKeep a copy where backups of the replicas are not: without the subject key no person is "+
				"found again, without the proof keys no receipt is signed.\n", cfg.Keys.Dir, strings.Join(made, ", "))
			return err
		},
	}
}

func keysList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List keysets and the ids of their keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			list, err := keys.List(cfg.Keys.Dir)
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			return table(cmd.OutOrStdout(), "KEYSET\tKEY\tPRIMARY\tSTATUS", func(w io.Writer) {
				for _, set := range list {
					for _, k := range set.Keys {
						_, _ = fmt.Fprintf(w, "%s\t%d\t%t\t%s\n", set.Name, k.ID, k.Primary, k.Status) // table reports the first failure
					}
				}
			})
		},
	}
}

func keysRotate(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rotate KEYSET", Short: "Add a key to seal, match or proof-REPLICA and make it the primary one", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			id, err := keys.Rotate(cfg.Keys.Dir, args[0])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"keyset": args[0], "primary": id})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: key %d is the primary one. Restart the sinks first, then capture.\n", args[0], id)
			return err
		},
	}
}

func keysRetire(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "retire KEYSET KEY", Short: "Take an old key out, unless a topic or a replica still needs it", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			id, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return usageError{fmt.Errorf("KEY is a number as `lethe keys list` shows it, not %q", args[1])}
			}
			if err := keys.Retire(cfg.Keys.Dir, args[0], uint32(id), app.KeyInUse(cmd.Context(), cfg, args[0])); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: key %d is retired\n", args[0], id)
			return err
		},
	}
}

func keysExport(g *globals) *cobra.Command {
	var role, out string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the keysets that one role needs, and no others", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			r, err := keys.ParseRole(role)
			if err != nil {
				return usageError{err}
			}
			written, err := keys.Export(cfg.Keys.Dir, r, out)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote to %s: %s\n", out, strings.Join(written, ", "))
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "capture, sink=REPLICA, ledger or operator")
	cmd.Flags().StringVar(&out, "out", "", "the folder to write to")
	for _, name := range []string{"role", "out"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // a slip in the line above
		}
	}
	return cmd
}

// table prints aligned columns.
func table(w io.Writer, head string, rows func(w io.Writer)) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, head) // Flush reports the first failure
	rows(t)
	return t.Flush()
}

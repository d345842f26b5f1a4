package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lethe/config"
	"lethe/internal/app"
)

// setupFlags are the flags of setup as they are given.
type setupFlags struct {
	o                        app.SetupOptions
	sourceFile               string
	replicaDSN, replicaFiles []string
	replicaRoles             []string
}

func setupCommand(g *globals) *cobra.Command {
	var flags setupFlags
	cmd := &cobra.Command{
		Use: "setup", Short: "Make topics, publication, slot, heartbeat's table, grants and Lethe's own tables, with an owner's login",
		Long: `Makes what is missing, and nothing else: doing it again changes nothing. A place that no flag names is not touched.

A dsn has the form of the config's (MySQL, MariaDB: owner:password@tcp(host:3306)/database?tls=true).
A dsn of PostgreSQL may be given without password: PGPASSWORD, a password file (~/.pgpass) or --source-dsn-file and --replica-dsn-file keep it
off the command line, where every user of the machine can read it; these files must not be readable by others (chmod 600). Settings of the servers, and whatever would rewrite a
table, are never changed: they are printed, for their owner to decide.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.resolve(); err != nil {
				return usageError{err}
			}
			cfg, err := g.load()
			if err != nil {
				return err
			}
			r, err := app.Setup(cmd.Context(), cfg, flags.o)
			if g.json {
				return errors.Join(err, printJSON(cmd.OutOrStdout(), r))
			}
			return errors.Join(err, printSetup(cmd.OutOrStdout(), r, &flags.o, app.ReplicaNames(cfg), err == nil))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&flags.o.Kafka, "kafka", false, "make the topics")
	f.StringVar(&flags.o.SourceDSN, "source-dsn", "", "the owner's dsn of the source")
	f.StringVar(&flags.sourceFile, "source-dsn-file", "", "a file that holds the owner's dsn of the source")
	f.StringVar(&flags.o.SourceRole, "source-role", "", "Lethe's login on the source (default: the user of the config's dsn)")
	f.StringArrayVar(&flags.replicaDSN, "replica-dsn", nil, "NAME=DSN of a replica's owner; may be given several times")
	f.StringArrayVar(&flags.replicaFiles, "replica-dsn-file", nil, "NAME=FILE that holds the dsn of a replica's owner")
	f.StringArrayVar(&flags.replicaRoles, "replica-role", nil, "NAME=ROLE: Lethe's login on a replica (default: the user of the config's dsn)")
	f.StringSliceVar(&flags.o.StatusRoles, "status-role", nil, "a role that may read the view lethe.status in the replicas")
	f.BoolVar(&flags.o.DryRun, "dry-run", false, "change nothing, and print the statements")
	return cmd
}

// resolve reads the files and the NAME=VALUE pairs.
func (f *setupFlags) resolve() (err error) {
	if f.sourceFile != "" {
		if f.o.SourceDSN != "" {
			return errors.New("--source-dsn and --source-dsn-file exclude each other")
		}
		if f.o.SourceDSN, err = readLine(f.sourceFile); err != nil {
			return err
		}
	}
	if f.o.ReplicaDSN, err = pairs("--replica-dsn", f.replicaDSN); err != nil {
		return err
	}
	files, err := pairs("--replica-dsn-file", f.replicaFiles)
	if err != nil {
		return err
	}
	for name, file := range files {
		if f.o.ReplicaDSN[name] != "" {
			return fmt.Errorf("--replica-dsn and --replica-dsn-file of %s exclude each other", name)
		}
		if f.o.ReplicaDSN[name], err = readLine(file); err != nil {
			return err
		}
	}
	if f.o.ReplicaRole, err = pairs("--replica-role", f.replicaRoles); err != nil {
		return err
	}
	if !f.o.Kafka && f.o.SourceDSN == "" && len(f.o.ReplicaDSN) == 0 {
		return app.ErrNothingToSetUp
	}
	return nil
}

// pairs does not repeat what it was given in its errors: a dsn may hold a password.
func pairs(flag string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" || strings.ContainsAny(name, ":/ ") {
			return nil, fmt.Errorf("%s wants NAME=VALUE, NAME being the replica's", flag)
		}
		if out[name] != "" {
			return nil, fmt.Errorf("%s is given twice for %s", flag, name)
		}
		out[name] = value
	}
	return out, nil
}

func readLine(name string) (string, error) {
	secret, err := config.ReadSecret(name) // a dsn may hold a password
	if err != nil {
		return "", fmt.Errorf("reading a dsn: %w", err)
	}
	line := strings.TrimSpace(secret.Reveal())
	if line == "" || strings.ContainsRune(line, '\n') {
		return "", fmt.Errorf("reading a dsn: %s should hold one line", name)
	}
	return line, nil
}

// notTouched lists the flags of the places that this setup was not asked for.
func notTouched(o *app.SetupOptions, replicas []string) string {
	var flags []string
	if !o.Kafka {
		flags = append(flags, "--kafka")
	}
	if o.SourceDSN == "" {
		flags = append(flags, "--source-dsn")
	}
	for _, name := range replicas {
		if o.ReplicaDSN[name] == "" {
			flags = append(flags, "--replica-dsn "+name+"=DSN")
		}
	}
	return strings.Join(flags, ", ")
}

// printSetup tells what was done. whole is false where an error ended it.
func printSetup(w io.Writer, r *app.SetupReport, o *app.SetupOptions, replicas []string, whole bool) error {
	var b strings.Builder
	for _, d := range r.Done {
		fmt.Fprintf(&b, "%s: %s\n", d.Where, d.What)
	}
	rest := notTouched(o, replicas)
	if len(r.Done) == 0 && whole && !o.DryRun {
		if rest == "" {
			b.WriteString("nothing to do: all that setup makes is there\n")
		} else {
			b.WriteString("nothing to do in the places that were named: all that setup makes there is there\n")
		}
	}
	if rest != "" && whole {
		fmt.Fprintf(&b, "not looked at, for want of a flag: %s (`lethe check` looks at everything)\n", rest)
	}
	if len(r.Left) > 0 {
		heading := "left to its owner:"
		if o.DryRun {
			heading = "would be done, or is left to its owner:"
		}
		b.WriteString(heading + "\n")
	}
	for i := range r.Left {
		f := &r.Left[i]
		fmt.Fprintf(&b, "  %s %s: %s: %s (%s)\n", f.Severity, f.Where, f.Object, f.Message, f.Code)
		for _, fix := range f.Fix {
			b.WriteString("      " + strings.ReplaceAll(fix, "\n", "\n      ") + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime/debug"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"lethe/config"
	"lethe/internal/app"
)

// memoryLimit keeps the garbage collector below the process's share of memory, unless GOMEMLIMIT says otherwise.
const memoryLimit = 80 << 20

// defaultStartTimeout is how long `run` waits while no server at all answers.
const defaultStartTimeout = time.Minute

func runCommand(g *globals) *cobra.Command {
	var (
		roles             []string
		logFormat, logTop string
		within            time.Duration
		strict            bool
	)
	cmd := &cobra.Command{
		Use: "run", Short: "Run the roles of the config file: capture and a sink for each replica",
		Long: `Runs every role of the config file in this process, or those that --role names, until it gets SIGINT or SIGTERM.

Before it starts it looks at every precondition, as ` + "`lethe check`" + ` does, and names each fault with the statement that mends
it. A fault of one replica stops the role of that replica only, unless --strict is given. A server that does not answer is
waited for; only when none does for the start timeout is that an error.

Exit codes: 1 a failure, 2 the command line or the config file, 4 no server can be reached, 5 a precondition does not hold,
70 a defect. A role that stands at a gap stays up, not ready, and lets the others go on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logFormat, logTop)
			if err != nil {
				return err
			}
			cfg, err := g.load()
			if err != nil {
				return err
			}
			if err := checkRoles(cfg, roles); err != nil {
				return err
			}
			if os.Getenv("GOMEMLIMIT") == "" && debug.SetMemoryLimit(-1) == math.MaxInt64 {
				debug.SetMemoryLimit(memoryLimit)
			}
			err = app.Preflight(cmd.Context(), cfg, app.PreflightOptions{Roles: roles, Within: within, Strict: strict, Logger: log})
			if cmd.Context().Err() != nil {
				return nil //nolint:nilerr // asked to stop before anything was started
			}
			if err != nil {
				return err
			}
			a, err := app.New(cmd.Context(), cfg, app.Options{Roles: roles, Version: version, Logger: log})
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&roles, "role", nil, "capture or sink=REPLICA; may be given several times (default: all)")
	f.StringVar(&logFormat, "log-format", "auto", "auto, json or console; auto is console on a terminal")
	f.StringVar(&logTop, "log-level", "info", "debug, info, warn or error")
	f.DurationVar(&within, "start-timeout", defaultStartTimeout, "how long to wait while no server answers at all")
	f.BoolVar(&strict, "strict", false, "refuse to start for the fault of one replica too")
	return cmd
}

// checkRoles makes an unknown role an error of the command line.
func checkRoles(cfg *config.Config, roles []string) error {
	if err := app.CheckRoles(cfg, roles); err != nil {
		return usageError{err}
	}
	return nil
}

// newLogger writes for people on a terminal, and JSON everywhere else.
func newLogger(w io.Writer, format, level string) (zerolog.Logger, error) {
	parsed, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", level)}
	}
	file, isFile := w.(*os.File)
	switch format {
	case "console":
	case "json":
	case "auto":
		if format = "json"; isFile && isatty.IsTerminal(file.Fd()) {
			format = "console"
		}
	default:
		return zerolog.Nop(), usageError{fmt.Errorf("--log-format %q: want auto, json or console", format)}
	}
	if format == "console" {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	// Roles log at once, and a writer need not bear that.
	return zerolog.New(zerolog.SyncWriter(w)).Level(parsed).With().Timestamp().Logger(), nil
}

// Command child is Lethe's process for the end-to-end tests: what `lethe run` starts, without the command line, and with the
// crash points of internal/crashpoint when it is built with the tag lethe_crash. It ends when its standard input does, so
// that it never outlives the test.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/app"
)

func main() {
	file := flag.String("config", "", "config file")
	roles := flag.String("roles", "", "roles, separated by commas; empty: all")
	recheck := flag.Duration("recheck", 300*time.Millisecond, "how soon a subject without a row is looked up again")
	flag.Parse()
	if err := run(*file, *roles, *recheck); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func run(file, roles string, recheck time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	o := app.Options{Version: "e2e", Logger: zerolog.New(os.Stderr).With().Timestamp().Logger(), RecheckFirst: recheck}
	if roles != "" {
		o.Roles = strings.Split(roles, ",")
	}
	a, err := app.New(ctx, cfg, o)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(a.Addr() + "\n"); err != nil { // the test waits for this line
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	return a.Run(ctx)
}

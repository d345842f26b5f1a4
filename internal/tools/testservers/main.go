// Command testservers runs a command with one PostgreSQL 15, one PostgreSQL 18,
// one MariaDB, one MySQL and one Kafka that all tests below it share:
//
//	go run ./internal/tools/testservers -- go test ./...
//
// It ends with the command's exit code. The servers never outlive it. What is
// not installed is named in its last lines, so that skipped tests do not look
// like passed ones.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"lethe/internal/testenv"
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: testservers -- COMMAND [ARGUMENT]...")
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testservers:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// graceful is how long the command has to end after an interrupt.
const graceful = 10 * time.Second

// closer is a started server.
type closer interface{ Close() error }

// run starts the servers, runs the command and returns its exit code. A server
// that is not installed is left out: the tests decide what that means.
func run(args []string) (int, error) {
	if err := dieWithParent(); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	up, err := start(ctx)
	code := 1
	if err == nil {
		code, err = command(ctx, args, up.env)
	}
	for _, s := range up.started {
		err = errors.Join(err, s.Close())
	}
	for _, m := range up.missing {
		fmt.Fprintln(os.Stderr, "testservers: tests were skipped or failed for want of", m)
	}
	return code, err
}

// servers are what was started.
type servers struct {
	env     []string // the variables that name them
	started []closer
	missing []error
}

// start starts all servers at once.
func start(ctx context.Context) (up servers, err error) {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		errs []error
	)
	launch := func(f func() (closer, string, error)) {
		wg.Go(func() {
			s, variable, err := f()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, testenv.ErrMissing):
				up.missing = append(up.missing, err)
			case err != nil:
				errs = append(errs, err)
			default:
				up.started = append(up.started, s)
				up.env = append(up.env, variable)
			}
		})
	}
	for version, name := range map[int]string{15: testenv.EnvPostgres15, 18: testenv.EnvPostgres18} {
		launch(func() (closer, string, error) {
			p, err := testenv.StartPostgres(ctx, testenv.Options{Version: version})
			if err != nil {
				return nil, "", err
			}
			return p, fmt.Sprintf("%s=postgres://%s@127.0.0.1:%d", name, p.Superuser(), p.Port), nil
		})
	}
	for flavor, name := range map[string]string{testenv.MariaDB: testenv.EnvMariaDB, testenv.MySQLServer: testenv.EnvMySQL} {
		launch(func() (closer, string, error) {
			m, err := testenv.StartMySQL(ctx, testenv.MySQLOptions{Flavor: flavor})
			if err != nil {
				return nil, "", err
			}
			return m, name + "=" + m.Addr(), nil
		})
	}
	launch(func() (closer, string, error) {
		k, err := testenv.StartKafka(ctx, testenv.KafkaOptions{})
		if err != nil {
			return nil, "", err
		}
		return k, testenv.EnvKafka + "=" + strings.Join(k.Brokers(), ","), nil
	})
	wg.Wait()
	return up, errors.Join(errs...)
}

// command runs the command. A signal to us reaches it as an interrupt, so that
// it can end its own children; the servers go after it.
func command(ctx context.Context, args, env []string) (int, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = graceful
	dieWithUs(cmd)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, fmt.Errorf("running %s: %w", args[0], err)
	}
	return 0, nil
}

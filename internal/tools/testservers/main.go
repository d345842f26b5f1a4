// Command testservers runs a command with one PostgreSQL 15, one PostgreSQL 18
// and one Kafka that all tests below it share:
//
//	go run ./internal/tools/testservers -- go test ./...
//
// It ends with the command's exit code. The servers never outlive it.
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
	env, started, err := start(ctx)
	code := 1
	if err == nil {
		code, err = command(ctx, args, env)
	}
	for _, s := range started {
		err = errors.Join(err, s.Close())
	}
	return code, err
}

// start starts all servers at once and returns the variables that name them.
func start(ctx context.Context) (env []string, started []closer, err error) {
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
				fmt.Fprintln(os.Stderr, "testservers: going on without", err)
			case err != nil:
				errs = append(errs, err)
			default:
				started = append(started, s)
				env = append(env, variable)
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
	launch(func() (closer, string, error) {
		k, err := testenv.StartKafka(ctx, testenv.KafkaOptions{})
		if err != nil {
			return nil, "", err
		}
		return k, testenv.EnvKafka + "=" + strings.Join(k.Brokers(), ","), nil
	})
	wg.Wait()
	return env, started, errors.Join(errs...)
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

// Command lethe is the whole of Lethe: the daemon and its operator's tools, one file a command.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(execute()) }

// execute runs the command line. The first signal asks everything to stop in order; the second ends the process.
func execute() (code int) {
	defer func() {
		if r := recover(); r != nil {
			code = reportPanic(os.Stderr, r)
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		cancel()
		<-signals
		os.Exit(exitInterrupted)
	}()
	return report(os.Stderr, rootCommand().ExecuteContext(ctx))
}

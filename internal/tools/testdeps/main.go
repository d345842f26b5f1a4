// Command testdeps installs what the tests need and is not there yet: a C
// compiler for the race detector, PostgreSQL 15 and 18, MariaDB, MySQL 9, Java,
// Apache Kafka, and systemd-analyze, which reads the unit of deploy/.
//
//	go run ./internal/tools/testdeps [-only gcc,postgres,postgres18,mariadb,mysql,kafka,systemd]
//
// Packages come from the distribution through apt-get, which takes root or
// sudo; everything else is resolved with Maven, or taken out of packages that
// are not installed, and kept in the cache folder of internal/testenv. It may
// be run at any time, by several at once, and does nothing where nothing is
// missing.
//
// What only some machines can get (MySQL 9 and MariaDB come from Debian's
// mirrors) fails it with CI=true only; elsewhere it is said, and the tests that
// need it are skipped.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"lethe/internal/testenv"
)

// dependency is one thing that tests need.
type dependency struct {
	name    string
	have    func() bool
	install func(context.Context) error

	// optional ones may be missing on a person's machine, never in CI.
	optional bool
}

func dependencies() []dependency {
	return []dependency{
		{name: "gcc", have: haveGCC, install: installGCC},
		{name: "postgres", have: havePostgres(15), install: installPostgres15},
		{name: "postgres18", have: havePostgres(18), install: installPostgres18},
		{name: "mariadb", have: haveMySQL(testenv.MariaDB), install: installMariaDB, optional: true},
		{name: "mysql", have: haveMySQL(testenv.MySQLServer), install: installMySQL, optional: true},
		{name: "kafka", have: haveKafka, install: installKafka},
		{name: "systemd", have: haveSystemd, install: installSystemd, optional: true},
	}
}

func main() {
	only := flag.String("only", "", "install these alone, comma-separated: gcc, postgres, postgres18, mariadb, mysql, kafka, systemd")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testdeps:", err)
		os.Exit(1)
	}
}

// run installs what is missing of the wanted dependencies, and goes on after a
// failure so that all of them are told at once.
func run(ctx context.Context, only string) error {
	wanted := dependencies()
	if only != "" {
		names := strings.Split(only, ",")
		for _, name := range names {
			if !slices.ContainsFunc(wanted, func(d dependency) bool { return d.name == name }) {
				return fmt.Errorf("nothing is called %q; see -help", name)
			}
		}
		wanted = slices.DeleteFunc(wanted, func(d dependency) bool { return !slices.Contains(names, d.name) })
	}
	if !slices.ContainsFunc(wanted, func(d dependency) bool { return !d.have() }) {
		return nil
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, d := range wanted {
		if d.have() { // asked again: whoever held the lock may have installed it
			continue
		}
		if err := d.install(ctx); err != nil {
			err = fmt.Errorf("installing %s: %w", d.name, err)
			if d.optional && only == "" && ctx.Err() == nil && os.Getenv("CI") != "true" {
				say("going on without: %v", err)
				continue
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

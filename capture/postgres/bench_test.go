package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// The backlog of BenchmarkDrain: customers inserted in one transaction, then as many transactions of an UPDATE and an INSERT.
const (
	customers    = 200_000
	transactions = 200_000
)

// counter is a Handler that counts, and ends a Run.
type counter struct {
	rows, until int
}

var errReached = errors.New("the end of the backlog")

func (c *counter) Begin(*capture.Transaction) error { return nil }
func (c *counter) Change(*capture.Change) error     { c.rows++; return nil }
func (c *counter) Commit(*capture.Transaction) error {
	if c.rows >= c.until {
		return errReached
	}
	return nil
}

// backlog makes a server with what is to be drained, and returns where it ends.
func backlog(b *testing.B) (e *env, end string) {
	b.Helper()
	pg := testenv.NewPostgres(b, testenv.Options{Version: 15, Settings: map[string]string{
		"max_wal_size": "8GB", "synchronous_commit": "off", "logical_decoding_work_mem": "256MB",
	}})
	pg.Exec(b, "", "CREATE DATABASE crm")
	e = envOn(b, pg, "crm")
	e.exec(b,
		`CREATE TABLE customer (id int PRIMARY KEY, last_name text, first_name text, birth_date date, status text,
			blocked bool NOT NULL DEFAULT false, ok_for_promo bool NOT NULL DEFAULT true, updated_at timestamptz DEFAULT now())`,
		`CREATE TABLE consent (id serial PRIMARY KEY, customer_id int NOT NULL, purpose_code text, channel_code text, status text,
			legal_basis text, changed_at timestamptz DEFAULT now())`)
	e.need("public.customer", "id", "status")
	e.need("public.consent", "id", "customer_id", "status")
	e.publish(b)
	e.exec(b,
		"INSERT INTO customer SELECT g, 'Lastname' || g, 'Firstname', '1970-01-01', 'A' FROM generate_series(1, "+strconv.Itoa(customers)+") g",
		`CREATE PROCEDURE work(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP
			UPDATE customer SET status = 'B', updated_at = now() WHERE id = i;
			INSERT INTO consent (customer_id, purpose_code, channel_code, status, legal_basis) VALUES (i, 'NL', 'E', 'Y', 'C');
			COMMIT; END LOOP; END $$`,
		"CALL work("+strconv.Itoa(transactions)+")")
	end = e.query(b, "SELECT pg_current_wal_insert_lsn()::text")
	e.exec(b, "INSERT INTO consent (customer_id) VALUES (0)", "CHECKPOINT") // what pg_recvlogical sees the end by
	return e, end
}

func cpu(b *testing.B, who int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDrain reads a backlog of 600,000 row changes in 200,001 transactions, and compares the time with that of
// pg_recvlogical writing the same to a file.
func BenchmarkDrain(b *testing.B) {
	e, end := backlog(b)
	// The best of all iterations: what else the machine does makes both slower, never faster.
	ours, theirs := time.Hour, time.Hour
	var used time.Duration
	n := 0
	for b.Loop() {
		n++
		used -= cpu(b, syscall.RUSAGE_SELF)
		start := time.Now()
		h := &counter{until: customers + 2*transactions}
		if err := e.source(b).Run(context.Background(), nil, h); !errors.Is(err, errReached) {
			b.Fatal(err)
		}
		ours = min(ours, time.Since(start))
		used += cpu(b, syscall.RUSAGE_SELF)
		e.awaitInactive(b)
		theirs = min(theirs, recvlogical(b, e, end))
		e.awaitInactive(b)
	}
	b.ReportMetric(ours.Seconds(), "s/drain")
	b.ReportMetric(theirs.Seconds(), "s/pg_recvlogical")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
	b.ReportMetric(float64(used.Nanoseconds())/float64(n)/(customers+2*transactions), "cpu-ns/change")
}

// recvlogical drains a copy of the slot, because pg_recvlogical acknowledges what it wrote.
func recvlogical(b *testing.B, e *env, end string) time.Duration {
	b.Helper()
	slot := testenv.UniqueName("copy")
	e.exec(b, "SELECT pg_copy_logical_replication_slot('"+e.db+"', '"+slot+"')")
	defer e.exec(b, "SELECT pg_drop_replication_slot('"+slot+"')")
	dir := b.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			b.Fatal(err)
		}
	}
	cmd := e.pg.Command(b.Context(), "pg_recvlogical", "-d", e.pg.DSN(e.db, ""), "--slot", slot, "--start", "--no-loop",
		"--endpos", end, "-o", "proto_version=1", "-o", "publication_names="+e.db, "-o", "messages=true", "-f", filepath.Join(dir, "out"))
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("pg_recvlogical: %v\n%s", err, out)
	}
	return time.Since(start)
}

// BenchmarkLatency measures from the client's COMMIT returning to the Handler's Commit at 1,000 transactions a second.
func BenchmarkLatency(b *testing.B) {
	e := newEnv(b, testenv.SharedPostgres(b, 15))
	e.exec(b, "CREATE TABLE a (id int PRIMARY KEY, v text)")
	e.need("public.a", "id")
	e.publish(b)
	arrived := make(chan time.Time, 1)
	r := capturetest.Start(b, e.source(b), nil, &capturetest.Recorder{CountOnly: true, OnCommit: func(*capturetest.Tx) error {
		arrived <- time.Now()
		return nil
	}})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var total, worst time.Duration
	id := 0
	for b.Loop() {
		<-tick.C
		id++
		e.exec(b, "INSERT INTO a VALUES ("+strconv.Itoa(id)+", 'x')")
		committed := time.Now()
		took := (<-arrived).Sub(committed)
		total += took
		worst = max(worst, took)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(id), "us/commit")
	b.ReportMetric(float64(worst.Microseconds()), "us/worst")
	e.halt(b, r)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The full backlog: so many customers inserted, then as many transactions of one UPDATE and one INSERT.
const backlog = 200_000

const (
	drainTarget  = 1.3
	memoryTarget = 96.0 // MB
)

// drain measures the draining of one backlog, again and again through slots made before it.
func drain(ctx context.Context, o *options, dir string) (_ []result, err error) {
	s, err := newStage(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = joinClose(err, s) }()
	type round struct{ config, listen, slot string }
	rounds := make([]round, o.rounds)
	for i := range rounds {
		name := fmt.Sprintf("drain%d", i)
		r := &rounds[i]
		if r.config, r.listen, err = s.prepare(ctx, name); err != nil {
			return nil, err
		}
		r.slot = "recv" + fmt.Sprint(i)
		if err := s.exec(ctx, "crm", "select pg_create_logical_replication_slot('"+r.slot+"', 'pgoutput')"); err != nil {
			return nil, err
		}
	}
	n := int(backlog * o.scale)
	fmt.Fprintf(os.Stderr, "making a backlog of %d row changes\n", 3*n)
	end, err := s.backlog(ctx, n)
	if err != nil {
		return nil, err
	}
	var ours, theirs []time.Duration
	peak, cpu := 0.0, time.Duration(0)
	for _, r := range rounds {
		took, err := s.receive(ctx, r.slot, end)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, took)
		used, err := s.capture(ctx, o.lethe, r.config, r.listen, n)
		if err != nil {
			return nil, err
		}
		ours, peak, cpu = append(ours, used.wall), max(peak, used.mb), max(cpu, used.cpu)
		fmt.Fprintf(os.Stderr, "pg_recvlogical %.2f s, lethe %.2f s (start %.2f s) with %.2f s of CPU and %.0f MB\n", took.Seconds(),
			used.wall.Seconds(), used.startup.Seconds(), used.cpu.Seconds(), used.mb)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	a, b := ours[len(ours)/2], theirs[len(theirs)/2]
	ratio := a.Seconds() / b.Seconds()
	return []result{
		{
			fmt.Sprintf("drain %d row changes into acknowledged events", 3*n), fmt.Sprintf("%.2f s (%.1f s of CPU)", a.Seconds(), cpu.Seconds()),
			fmt.Sprintf("pg_recvlogical to a file: %.2f s", b.Seconds()), fmt.Sprintf("%.2f", ratio), fmt.Sprintf("at most %.1f", drainTarget), ratio <= drainTarget,
		},
		{"memory of the process meanwhile", fmt.Sprintf("%.0f MB", peak), "", "", fmt.Sprintf("at most %.0f MB", memoryTarget), peak <= memoryTarget},
	}, nil
}

func joinClose(err error, s *stage) error {
	if closeErr := s.close(); err == nil {
		return closeErr
	}
	return err
}

// backlog writes the changes and returns where the log ends.
func (s *stage) backlog(ctx context.Context, n int) (end string, err error) {
	script := fmt.Sprintf(`
		set synchronous_commit = off;
		insert into customer (last_name, first_name, birth_date) select 'Nom ' || i, 'Prénom ' || i, '1970-01-01' from generate_series(1, %[1]d) i;
		do $$ begin
			for i in 1..%[1]d loop
				update customer set last_contact = now() where customer_id = i;
				insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
					values (i, 'NL', 'E', i, 'Y', 'C', 'DOC-' || i);
				commit;
			end loop;
		end $$;
		checkpoint`, n)
	conn, err := s.connect(ctx, "crm")
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is in flight
	for _, sql := range splitScript(script) {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return "", err
		}
	}
	return end, conn.QueryRow(ctx, "select pg_current_wal_lsn()::text").Scan(&end)
}

// receive runs pg_recvlogical over the same publication.
func (s *stage) receive(ctx context.Context, slot, end string) (time.Duration, error) {
	file := filepath.Join(s.pg.DataDir, slot+".recv") // the one folder that the servers' uid may write to
	cmd := s.pg.Command(ctx, "pg_recvlogical", "-d", s.pg.DSN("crm", ""), "-S", slot, "--start", "-f", file, "--endpos", end, "--no-loop",
		"-o", "proto_version=1", "-o", "publication_names=lethe")
	cmd.Stderr = os.Stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("running pg_recvlogical: %w", err)
	}
	return took, os.Remove(file)
}

// usage is what a run of lethe took.
type usage struct {
	startup, wall, cpu time.Duration
	mb                 float64
}

// capture runs the capture role from where it streams until Kafka has acknowledged every event of the backlog.
func (s *stage) capture(ctx context.Context, lethe, config, listen string, events int) (u usage, err error) {
	launched := time.Now()
	p, err := s.start(ctx, lethe, config, "--role", "capture")
	if err != nil {
		return u, err
	}
	// Its own checks at the start are no part of draining; they are told apart.
	began := launched
	err = await(ctx, 5*time.Millisecond, time.Minute, func() (bool, error) {
		streaming, err := metric(ctx, listen, `lethe_capture_state{source="crm",state="streaming"}`)
		began = time.Now()
		return streaming == 1, err
	})
	if err == nil {
		err = await(ctx, 40*time.Millisecond, 2*time.Minute, func() (bool, error) {
			n, err := metric(ctx, listen, `lethe_capture_events_total{source="crm",type="ConsentChange"}`)
			return int(n) >= events, err
		})
	}
	u.wall, u.startup = time.Since(began), began.Sub(launched)
	mb, peakErr := p.peak()
	err = errors.Join(p.stop(err), peakErr)
	if state := p.cmd.ProcessState; state != nil {
		u.cpu = state.UserTime() + state.SystemTime()
	}
	u.mb = mb
	return u, err
}

// splitScript splits at the semicolons that end a line outside of dollar quotes.
func splitScript(script string) []string {
	var out []string
	begin, quoted := 0, false
	for i := 0; i < len(script); i++ {
		switch {
		case i+1 < len(script) && script[i:i+2] == "$$":
			quoted = !quoted
			i++
		case script[i] == ';' && !quoted:
			out = append(out, script[begin:i])
			begin = i + 1
		}
	}
	return append(out, script[begin:])
}

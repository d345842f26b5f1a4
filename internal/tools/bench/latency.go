package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	latencyTarget = 100 * time.Millisecond
	warmUp        = 10 * time.Second
	clients       = 8
)

// latency withdraws consents at a steady rate, one customer a transaction, and compares the time at which each COMMIT
// returned with the commit timestamp of the customer's row in the marketing replica.
func latency(ctx context.Context, o *options, dir string) (_ []result, err error) {
	s, err := newStage(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = joinClose(err, s) }()
	path, listen, err := s.prepare(ctx, "latency")
	if err != nil {
		return nil, err
	}
	n := int(float64(o.rate) * (o.length + warmUp).Seconds())
	fmt.Fprintf(os.Stderr, "filling %d customers\n", n)
	if err := s.fillLatency(ctx, n); err != nil {
		return nil, err
	}
	p, err := s.start(ctx, o.lethe, path)
	if err != nil {
		return nil, err
	}
	waits, err := s.measure(ctx, o, listen, n)
	mb, peakErr := p.peak()
	if err := errors.Join(p.stop(err), peakErr); err != nil {
		return nil, err
	}
	slices.Sort(waits)
	at := func(q float64) time.Duration { return waits[min(len(waits)-1, int(q*float64(len(waits))))] }
	p99 := at(0.99)
	return []result{{
		fmt.Sprintf("commit to commit in the replica, %d transactions a second for %s", o.rate, o.length),
		fmt.Sprintf("p50 %d ms, p99 %d ms, max %d ms (%.0f MB)", at(0.5).Milliseconds(), p99.Milliseconds(), at(1).Milliseconds(), mb),
		"", "", fmt.Sprintf("p99 at most %d ms", latencyTarget.Milliseconds()), p99 <= latencyTarget,
	}}, nil
}

func (s *stage) fillLatency(ctx context.Context, n int) error {
	for db, script := range map[string]string{
		"crm": `insert into customer (last_name) select 'Nom ' || i from generate_series(1, %[1]d) i;
			insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis)
				select i, 'NL', 'E', i, 'Y', 'C' from generate_series(1, %[1]d) i;
			analyze`,
		"marketing": `insert into contact (crm_id, firstname, newsletter_optin) select i, 'Prénom', true from generate_series(1, %[1]d) i; analyze`,
		"reporting": `insert into dim_customer (customer_nk, full_name) select i, 'Prénom' from generate_series(1, %[1]d) i; analyze`,
	} {
		if err := s.exec(ctx, db, fmt.Sprintf(script, n)); err != nil {
			return err
		}
	}
	return nil
}

// measure waits until the filling has been followed, plays, and returns the waits after the warm-up.
func (s *stage) measure(ctx context.Context, o *options, listen string, n int) ([]time.Duration, error) {
	err := await(ctx, 200*time.Millisecond, 10*time.Minute, func() (bool, error) {
		captured, err := metric(ctx, listen, `lethe_capture_events_total{source="crm",type="ConsentChange"}`)
		if err != nil || int(captured) < n {
			return false, err
		}
		lag, err := metric(ctx, listen, "lethe_sink_lag_events")
		return err == nil && lag == 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for the filling: %w", err)
	}
	returned, err := s.withdraw(ctx, o.rate, n)
	if err != nil {
		return nil, err
	}
	conn, err := s.connect(ctx, "marketing")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it only reads
	err = await(ctx, 100*time.Millisecond, time.Minute, func() (bool, error) {
		var left int
		err := conn.QueryRow(ctx, "select count(*) from contact where newsletter_optin").Scan(&left)
		return err == nil && left == 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for the replica: %w", err)
	}
	rows, err := conn.Query(ctx, "select crm_id, pg_xact_commit_timestamp(xmin) from contact")
	if err != nil {
		return nil, err
	}
	var waits []time.Duration
	var id int
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		if id > int(float64(o.rate)*warmUp.Seconds()) {
			waits = append(waits, at.Sub(returned[id-1]))
		}
		return nil
	})
	return waits, err
}

// withdraw withdraws the consent of each customer, at the rate, and returns when each COMMIT returned.
func (s *stage) withdraw(ctx context.Context, rate, n int) ([]time.Time, error) {
	returned := make([]time.Time, n)
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for c := range clients {
		wg.Go(func() {
			conn, err := s.connect(ctx, "crm")
			if err != nil {
				errs[c] = err
				return
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is in flight
			timer := time.NewTimer(0)
			defer timer.Stop()
			for i := c; i < n; i += clients {
				due := begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
				timer.Reset(time.Until(due))
				select {
				case <-ctx.Done():
					errs[c] = ctx.Err()
					return
				case <-timer.C:
				}
				_, err := conn.Exec(ctx, "update consent set status = 'N' where customer_id = "+strconv.Itoa(i+1), pgx.QueryExecModeSimpleProtocol)
				if err != nil {
					errs[c] = err
					return
				}
				returned[i] = time.Now()
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > time.Duration(n)*time.Second/time.Duration(rate)*11/10 {
		fmt.Fprintf(os.Stderr, "the clients fell behind their rate: %s for %d transactions\n", took, n)
	}
	return returned, errors.Join(errs...)
}

package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// queueWitness raises the witness rows with lethe.meta, in the transaction of phase 2: a schema that is restored from a
// backup without the others then shows another number.
func (r *Replica) queueWitness(b *pgx.Batch, m *Mapping) {
	b.Queue(r.ledger.sql(`UPDATE {s}.meta SET v = (v::bigint + 1)::text WHERE k = $1`), ledger.MetaWitness)
	for _, name := range m.witnessTables() {
		b.Queue(`UPDATE `+name+` SET n = n + 1 WHERE replica = $1`, r.opts.Name)
	}
}

// checkWitness notices a partial restore: a mapped schema whose witness is not lethe.meta's comes from a backup, and may
// hold people who were erased since. Everything that this replica ever did is then done again: erased subjects go back to
// phase 2, all others get their fold. Nothing is called verified until that is through, because the cases are open again.
func (r *Replica) checkWitness(ctx context.Context, places []sinks.Place) (time.Time, error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return time.Time{}, err
	}
	next := time.Now().Add(ledger.WitnessEvery)
	tables := m.witnessTables()
	parts := make([]string, len(tables))
	for i, name := range tables {
		parts[i] = `SELECT n FROM ` + name + ` WHERE replica = $1`
	}
	var differs bool
	var rows int
	err = r.opts.Pool.QueryRow(ctx, r.ledger.sql(`
		SELECT count(*), coalesce(bool_or(n IS DISTINCT FROM (SELECT v::bigint FROM {s}.meta WHERE k = $2)), false)
		FROM (`+strings.Join(parts, " UNION ALL ")+`) w(n)`), r.opts.Name, ledger.MetaWitness).Scan(&rows, &differs)
	switch {
	case err != nil:
		return next, classify("comparing witnesses", err)
	case rows < len(tables):
		return next, &sinks.Error{
			Class: sinks.Permanent, Op: "comparing witnesses", Code: "witness_missing",
			Hint: "a mapped schema has no row in " + witnessTable + ": run `lethe setup`",
		}
	case !differs:
		return next, nil
	}
	r.log.Error().Str("replica", r.opts.Name).
		Msg("a mapped schema was restored from a backup: everything is applied to it again, and is unproven until then")
	return next, r.reapply(ctx, places, tables)
}

// reapply opens every case again and asks for every subject's fold. The witnesses are made equal in the same
// transaction: whoever owns other partitions has seen the difference by then, or finds its subjects reopened here.
func (r *Replica) reapply(ctx context.Context, places []sinks.Place, tables []string) error {
	return r.inTx(ctx, "applying everything again after a restore", func(ctx context.Context, tx pgx.Tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		b := &pgx.Batch{}
		b.Queue(`SELECT set_config('statement_timeout', '0', true)`) // it grows with the ledger
		b.Queue(r.ledger.sql(`
			UPDATE {s}.pending p SET state = 'suppressed', wait = 'none', due_at = now(), attempts = ` + sqlNextRound + `, released = true,
				error_code = 'restored'
			WHERE state IN ('applied', 'verified') AND NOT observed`))
		b.Queue(r.ledger.sql(`
			UPDATE {s}.subject SET next_change_at = now() WHERE state <> 'erased' AND sealed_key IS NOT NULL`))
		b.Queue(r.ledger.sql(`
			UPDATE {s}.subject s SET recheck_at = now(), unmatched_since = coalesce(unmatched_since, now())
			FROM {s}.pending p WHERE p.ref = s.ref AND p.state = 'suppressed' AND s.state = 'suppressed' AND s.sealed_key IS NOT NULL`))
		b.Queue(r.ledger.sql(`
			UPDATE {s}.pending SET matched = false WHERE state = 'suppressed' AND applied_at IS NULL AND NOT observed`))
		// Phase 2 waits until all rows by which people are found have been read again.
		b.Queue(r.ledger.sql(`UPDATE {s}.scan SET basis = '', full_at = NULL, fresh_at = NULL`))
		for _, name := range tables {
			b.Queue(r.ledger.sql(`UPDATE `+name+` SET n = (SELECT v::bigint FROM {s}.meta WHERE k = $2) WHERE replica = $1`), r.opts.Name, ledger.MetaWitness)
		}
		return send(ctx, tx, b)
	})
}

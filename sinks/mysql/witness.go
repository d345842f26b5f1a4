package mysql

import (
	"context"
	"strings"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// raiseWitness raises the witness rows with meta, in the transaction of phase 2: a database that is restored from a backup
// without the others then shows another number.
func (r *Replica) raiseWitness(ctx context.Context, tx *tx, m *Mapping) error {
	_, err := r.write(ctx, tx, `UPDATE {p}meta SET v = CAST(v + 1 AS SIGNED) WHERE k = ?`, ledger.MetaWitness)
	if err != nil {
		return err
	}
	for _, name := range m.witnessTables() {
		if _, err := r.write(ctx, tx, `UPDATE `+name+` SET n = n + 1 WHERE replica = ?`, r.opts.Name); err != nil {
			return err
		}
	}
	return nil
}

// checkWitness notices a partial restore: a mapped database whose witness is not meta's comes from a backup, and may hold
// people who were erased since. Everything that this replica ever did is then done again: erased subjects go back to phase 2,
// all others get their fold. Nothing is called verified until that is through, because the cases are open again.
func (r *Replica) checkWitness(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "comparing witnesses"
	m, err := r.compiled(ctx)
	if err != nil {
		return time.Time{}, err
	}
	next := time.Now().Add(ledger.WitnessEvery)
	tables := m.witnessTables()
	parts := make([]string, len(tables))
	args := []any{ledger.MetaWitness}
	for i, name := range tables {
		parts[i], args = `SELECT n FROM `+name+` WHERE replica = ?`, append(args, r.opts.Name)
	}
	var differs bool
	var rows int
	err = r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`
		SELECT COUNT(*), COALESCE(MAX(NOT w.n <=> (SELECT CAST(v AS SIGNED) FROM {p}meta WHERE k = ?)), 0)
		FROM (`+strings.Join(parts, " UNION ALL ")+`) w`), args...).Scan(&rows, &differs)
	switch {
	case err != nil:
		return next, classify(op, err)
	case rows < len(tables):
		return next, &sinks.Error{
			Class: sinks.Permanent, Op: op, Code: "witness_missing",
			Hint: "a mapped database has no row in its table of witnesses: run `lethe setup`",
		}
	case !differs:
		return next, nil
	}
	r.log.Error().Str("replica", r.opts.Name).
		Msg("a mapped database was restored from a backup: everything is applied to it again, and is unproven until then")
	return next, r.reapply(ctx, places, tables)
}

// unbounded begins a statement that grows with the ledger. MariaDB bounds every statement by a time, and takes what is in
// the comment; MySQL bounds only those that read.
const unbounded = `/*M! SET STATEMENT max_statement_time = 0 FOR */ `

// reapply opens every case again and asks for every subject's fold. The witnesses are made equal in the same
// transaction: whoever owns other partitions has seen the difference by then, or finds its subjects reopened here.
func (r *Replica) reapply(ctx context.Context, places []sinks.Place, tables []string) error {
	return r.inTx(ctx, "applying everything again after a restore", func(ctx context.Context, tx *tx) error {
		if err := r.lockPlaces(ctx, tx, places); err != nil {
			return err
		}
		statements := []string{
			`UPDATE {p}pending p SET p.state = 'suppressed', p.wait = 'none', p.due_at = UTC_TIMESTAMP(6), p.attempts = ` + sqlNextRound + `,
				p.released = TRUE, p.error_code = '` + ledger.ReasonRestored + `' WHERE p.state IN ('applied', 'verified') AND NOT p.observed`,
			askForFolds,
			`INSERT INTO {p}due (ref, part, unmatched_since, recheck_at)
				SELECT s.ref, s.part, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM {p}pending p STRAIGHT_JOIN {p}subject s ON s.ref = p.ref
				WHERE p.state = 'suppressed' AND s.state = 'suppressed' AND s.sealed_key IS NOT NULL FOR UPDATE
				ON DUPLICATE KEY UPDATE recheck_at = VALUES(recheck_at), unmatched_since = COALESCE({p}due.unmatched_since, VALUES(unmatched_since))`,
			`UPDATE {p}pending p SET p.matched = FALSE WHERE p.state = 'suppressed' AND p.applied_at IS NULL AND NOT p.observed`,
			`UPDATE {p}scan s SET s.basis = '', s.full_at = NULL, s.fresh_at = NULL`, // phase 2 waits until all rows have been read again
		}
		for _, statement := range statements {
			if _, err := r.write(ctx, tx, unbounded+statement); err != nil {
				return err
			}
		}
		for _, name := range tables {
			_, err := r.write(ctx, tx, `UPDATE `+name+` SET n = (SELECT CAST(v AS SIGNED) FROM {p}meta WHERE k = ?) WHERE replica = ?`,
				ledger.MetaWitness, r.opts.Name)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/capture/rules"
	"lethe/config"
)

const (
	// passTarget is the least part of the speed of bare reading that a pass has to have.
	passTarget = 0.5
	// passChunk is the default of source.pass.chunk.
	passChunk = 1000
)

// passOver is a CRM that a pass reads.
type passOver interface {
	// people fills in so many customers with a consent each.
	people(ctx context.Context, n int) error
	// chunk reads a table's columns in the order of its key, so many rows behind a key, and returns how many there were and the
	// last key.
	chunk(ctx context.Context, table passTable, after int64, limit int) (rows int, last int64, err error)
	// passing makes a config whose first start of capture is a pass.
	passing(ctx context.Context, name string) (path, listen string, err error)
	label() string
	base() *stage
	close() error
}

// passTable is a table whose key is one whole number, and what the mapping reads of it.
type passTable struct {
	name, key string
	columns   []string
}

// passTables are those that passOver fills.
var passTables = map[string]string{"customer": "customer_id", "consent": "consent_id"}

// passes measures passes over the same rows, each as a process's first deed, beside a plain client that reads the same chunks one
// after the other and does nothing with them.
func passes(ctx context.Context, o *options, dir string) (list []result, err error) {
	for _, part := range []struct {
		name string
		open func(context.Context, string) (passOver, error)
	}{
		{"postgres", func(ctx context.Context, dir string) (passOver, error) {
			s, err := newStage(ctx, dir)
			return &postgresPass{stage: s}, err
		}},
		{"mysql", func(ctx context.Context, dir string) (passOver, error) {
			s, err := newMySQLStage(ctx, dir)
			return &mysqlPass{mysqlStage: s}, err
		}},
	} {
		if o.crm != "" && o.crm != part.name {
			continue
		}
		over, err := part.open(ctx, dir+"-"+part.name)
		if err != nil {
			return nil, err
		}
		results, err := passRounds(ctx, o, over)
		if err := errors.Join(err, over.close()); err != nil {
			return nil, err
		}
		list = append(list, results...)
	}
	return list, nil
}

func passRounds(ctx context.Context, o *options, over passOver) (_ []result, err error) {
	fmt.Fprintf(os.Stderr, "%s: filling %d customers\n", over.label(), o.customers)
	if err := over.people(ctx, o.customers); err != nil {
		return nil, err
	}
	var ours, theirs []time.Duration
	peak, rows, events := 0.0, 0, 0
	for i := range o.rounds {
		path, listen, err := over.passing(ctx, fmt.Sprintf("pass%d", i))
		if err != nil {
			return nil, err
		}
		took, read, err := direct(ctx, over, path)
		if err != nil {
			return nil, err
		}
		used, made, err := over.base().pass(ctx, o.lethe, path, listen)
		if err != nil {
			return nil, err
		}
		if made.rows != read {
			return nil, fmt.Errorf("the pass read %d rows, and the plain client %d", made.rows, read)
		}
		events = made.events
		ours, theirs, peak, rows = append(ours, used.wall), append(theirs, took), max(peak, used.mb), read
		fmt.Fprintf(os.Stderr, "%s: %d rows, plain client %.2f s, lethe %.2f s with %d events, %.2f s of CPU and %.0f MB\n", over.label(), read, took.Seconds(),
			used.wall.Seconds(), made.events, used.cpu.Seconds(), used.mb)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	a, b := ours[len(ours)/2], theirs[len(theirs)/2]
	speed := b.Seconds() / a.Seconds()
	return []result{
		{
			fmt.Sprintf("%s: a pass over %d rows into %d acknowledged events", over.label(), rows, events), fmt.Sprintf("%.2f s", a.Seconds()), fmt.Sprintf("the same chunks by a plain client: %.2f s", b.Seconds()),
			fmt.Sprintf("%.2f of its speed", speed), fmt.Sprintf("at least %.1f", passTarget), speed >= passTarget,
		},
		{over.label() + ": memory of the process meanwhile", fmt.Sprintf("%.0f MB", peak), "", "", fmt.Sprintf("at most %.0f MB", memoryTarget), peak <= memoryTarget},
	}, nil
}

// direct reads the filled tables as a pass does, with one connection.
func direct(ctx context.Context, over passOver, path string) (took time.Duration, rows int, err error) {
	cfg, err := config.Load(path)
	if err != nil {
		return 0, 0, err
	}
	needs, err := rules.Needs(&cfg.Source)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	for name, n := range needs {
		_, bare, _ := strings.Cut(name, ".")
		table := passTable{name: name, key: passTables[bare], columns: n.Columns}
		if table.key == "" {
			continue
		}
		for after := int64(0); ; {
			n, last, err := over.chunk(ctx, table, after, passChunk)
			if err != nil {
				return 0, 0, err
			}
			rows += n
			if after = last; n < passChunk {
				break
			}
		}
	}
	return time.Since(began), rows, nil
}

// query is the SELECT of a chunk; parameter is how the dialect writes one.
func (t *passTable) query(parameter string, limit int) string {
	return fmt.Sprintf("SELECT %[1]s, %[2]s FROM %[3]s WHERE %[1]s > %[4]s ORDER BY %[1]s LIMIT %[5]d", t.key, strings.Join(t.columns, ", "), t.name, parameter, limit)
}

// passMade is what a pass has read and published.
type passMade struct{ rows, events int }

// pass runs the capture role until its first pass has ended, and returns what that took from its begin on.
func (s *stage) pass(ctx context.Context, lethe, config, listen string) (u usage, made passMade, err error) {
	p, err := s.start(ctx, lethe, config, "--role", "capture")
	if err != nil {
		return u, made, err
	}
	running := func() (float64, error) { return metric(ctx, listen, "lethe_pass_running{") }
	began := time.Now()
	err = await(ctx, 2*time.Millisecond, time.Minute, func() (bool, error) {
		on, err := running()
		began = time.Now()
		return on == 1, err
	})
	if err == nil {
		err = await(ctx, 20*time.Millisecond, 10*time.Minute, func() (bool, error) {
			on, err := running()
			return err == nil && on == 0, err
		})
	}
	u.wall = time.Since(began)
	rows, rowsErr := metric(ctx, listen, "lethe_pass_rows{")
	events, eventsErr := metric(ctx, listen, "lethe_capture_events_total{")
	made = passMade{rows: int(rows), events: int(events)}
	mb, peakErr := p.peak()
	err = errors.Join(p.stop(errors.Join(err, rowsErr, eventsErr)), peakErr)
	if state := p.cmd.ProcessState; state != nil {
		u.cpu = state.UserTime() + state.SystemTime()
	}
	u.mb = mb
	return u, made, err
}

// postgresPass is the CRM on PostgreSQL.
type postgresPass struct {
	*stage
	reading *pgx.Conn
}

func (p *postgresPass) label() string { return "PostgreSQL" }
func (p *postgresPass) base() *stage  { return p.stage }

func (p *postgresPass) people(ctx context.Context, n int) error {
	return p.exec(ctx, "crm", fmt.Sprintf(`
		insert into customer (last_name, first_name, birth_date) select 'Nom ' || i, 'Prénom ' || i, '1970-01-01' from generate_series(1, %[1]d) i;
		insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
			select i, 'NL', 'E', i, 'Y', 'C', 'DOC-' || i from generate_series(1, %[1]d) i;
		analyze`, n))
}

func (p *postgresPass) passing(ctx context.Context, name string) (path, listen string, err error) {
	return p.prepare(ctx, name)
}

func (p *postgresPass) chunk(ctx context.Context, t passTable, after int64, limit int) (rows int, last int64, err error) {
	if p.reading == nil {
		if p.reading, err = p.connect(ctx, "crm"); err != nil {
			return 0, 0, err
		}
	}
	answer, err := p.reading.Query(ctx, t.query("$1", limit), after)
	if err != nil {
		return 0, 0, err
	}
	defer answer.Close()
	for answer.Next() {
		rows++
		last, err = bigEndian(answer.RawValues()[0])
		if err != nil {
			return 0, 0, err
		}
	}
	return rows, last, answer.Err()
}

func (p *postgresPass) close() error {
	var err error
	if p.reading != nil {
		err = p.reading.Close(context.Background())
	}
	return errors.Join(err, p.stage.close())
}

// bigEndian reads a whole number of PostgreSQL's binary form.
func bigEndian(b []byte) (n int64, err error) {
	if len(b) != 4 && len(b) != 8 {
		return 0, fmt.Errorf("a key of %d bytes", len(b))
	}
	for _, v := range b {
		n = n<<8 | int64(v)
	}
	return n, nil
}

// mysqlPass is the CRM on MySQL.
type mysqlPass struct {
	*mysqlStage
	db         *sql.DB
	statements map[string]*sql.Stmt
}

func (m *mysqlPass) label() string { return m.kind }
func (m *mysqlPass) base() *stage  { return m.stage }

func (m *mysqlPass) people(ctx context.Context, n int) error {
	return m.run(ctx, "crm", people("customer", n)+`; INSERT INTO consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
		SELECT customer_id, 'NL', 'E', customer_id, 'Y', 'C', CONCAT('DOC-', customer_id) FROM customer; ANALYZE TABLE customer, consent`)
}

func (m *mysqlPass) passing(ctx context.Context, name string) (path, listen string, err error) {
	return m.configured(ctx, name)
}

func (m *mysqlPass) chunk(ctx context.Context, t passTable, after int64, limit int) (rows int, last int64, err error) {
	if m.db == nil {
		if m.db, err = m.open("crm"); err != nil {
			return 0, 0, err
		}
		m.db.SetMaxOpenConns(1)
		m.statements = map[string]*sql.Stmt{}
	}
	statement := m.statements[t.name]
	if statement == nil {
		if statement, err = m.db.PrepareContext(ctx, t.query("?", limit)); err != nil {
			return 0, 0, err
		}
		m.statements[t.name] = statement
	}
	answer, err := statement.QueryContext(ctx, after)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	values := make([]sql.RawBytes, 1+len(t.columns))
	into := []any{&last}
	for i := range values[1:] {
		into = append(into, &values[1+i])
	}
	for answer.Next() {
		if err := answer.Scan(into...); err != nil {
			return 0, 0, err
		}
		rows++
	}
	return rows, last, answer.Err()
}

func (m *mysqlPass) close() error {
	var err error
	if m.db != nil {
		err = m.db.Close()
	}
	return errors.Join(err, m.mysqlStage.close())
}

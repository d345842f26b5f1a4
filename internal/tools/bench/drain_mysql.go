package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog" //nolint:depguard // the library takes no other logger
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	_ "github.com/go-sql-driver/mysql" // the driver of the backlog's connection

	"lethe/internal/demo"
	"lethe/internal/testenv"
)

const (
	mysqlDrainTarget    = 1.5
	mysqlUnmappedTarget = 0.4
	// One in so many rows and transactions is on mapped tables where most of the traffic is not.
	mappedShare = 20
)

// mysqlStage is a stage whose CRM is on MySQL, or on MariaDB where MySQL is missing.
type mysqlStage struct {
	*stage
	my   *testenv.MySQL
	kind string // for the demo's config
}

func newMySQLStage(ctx context.Context, dir string) (_ *mysqlStage, err error) {
	base, err := newStage(ctx, dir)
	if err != nil {
		return nil, err
	}
	s := &mysqlStage{stage: base, kind: demo.MySQL}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	options := testenv.MySQLOptions{Flavor: testenv.MySQLServer, Dir: filepath.Join(dir, "mysql"), Settings: map[string]string{
		"innodb_flush_log_at_trx_commit": "0", "innodb_buffer_pool_size": "512M", "max_binlog_size": "1G",
	}}
	if s.my, err = testenv.StartMySQL(ctx, options); errors.Is(err, testenv.ErrMissing) {
		fmt.Fprintln(os.Stderr, "MySQL 9 is not installed: MariaDB takes its place")
		options.Flavor, s.kind = testenv.MariaDB, demo.MariaDB
		s.my, err = testenv.StartMySQL(ctx, options)
	}
	if err != nil {
		return nil, err
	}
	crm, _, _ := demo.MySQLSchemas()
	for _, script := range []struct{ database, text string }{
		{"", "CREATE DATABASE crm; CREATE USER lethe"},
		{"crm", crm},
		{"crm", "CREATE TABLE visitor LIKE customer; CREATE TABLE visit LIKE consent"}, // the same, and not mapped
	} {
		if err := s.run(ctx, script.database, script.text); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *mysqlStage) close() error {
	var err error
	if s.my != nil {
		err = s.my.Close()
	}
	return errors.Join(err, s.stage.close())
}

func (s *mysqlStage) open(database string) (*sql.DB, error) {
	return sql.Open("mysql", s.my.DSN(database, "")+"?multiStatements=true")
}

// run runs a script of several statements.
func (s *mysqlStage) run(ctx context.Context, database, script string) error {
	db, err := s.open(database)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, script)
	return errors.Join(err, db.Close())
}

// executed asks where the log stands.
func (s *mysqlStage) executed(ctx context.Context) (position string, err error) {
	db, err := s.open("")
	if err != nil {
		return "", err
	}
	query := "SELECT @@global.gtid_executed"
	if s.kind == demo.MariaDB {
		query = "SELECT @@global.gtid_binlog_pos"
	}
	err = db.QueryRowContext(ctx, query).Scan(&position)
	return position, errors.Join(err, db.Close())
}

// mysqlDrain measures the draining of one backlog of mapped tables, and of one that is mostly of an unmapped one.
func mysqlDrain(ctx context.Context, o *options, dir string) (_ []result, err error) {
	s, err := newMySQLStage(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	n := int(backlog * o.scale)
	work := "CREATE PROCEDURE work(n INT, mapped INT) BEGIN DECLARE i INT DEFAULT 1; WHILE i <= n DO START TRANSACTION; IF i % mapped = 0 THEN " +
		visits("customer", "consent", "i DIV mapped") + " ELSE " + visits("visitor", "visit", "i") + " END IF; COMMIT; SET i = i + 1; END WHILE; END"
	if err := s.run(ctx, "crm", work); err != nil {
		return nil, err
	}
	all, peak, err := s.rounds(ctx, o, "drain", 3*n, n, people("customer", n)+fmt.Sprintf("; CALL work(%d, 1)", n))
	if err != nil {
		return nil, err
	}
	all.name = fmt.Sprintf("%s: drain %d row changes into acknowledged events", s.kind, 3*n)
	all.judge(mysqlDrainTarget)
	few, fewPeak, err := s.rounds(ctx, o, "few", 3*n+n/mappedShare, n/mappedShare,
		people("visitor", n)+"; "+people("customer", n/mappedShare)+fmt.Sprintf("; CALL work(%d, %d)", n, mappedShare))
	if err != nil {
		return nil, err
	}
	few.name = fmt.Sprintf("%s: the same with %d %% of them on unmapped tables", s.kind, 100-100/mappedShare)
	few.judge(mysqlUnmappedTarget)
	peak = max(peak, fewPeak)
	return []result{all.result, few.result, {
		s.kind + ": memory of the process meanwhile", fmt.Sprintf("%.0f MB", peak), "", "", fmt.Sprintf("at most %.0f MB", memoryTarget), peak <= memoryTarget,
	}}, nil
}

// visits are the statements of one transaction.
func visits(person, consent, id string) string {
	return fmt.Sprintf(`UPDATE %s SET last_contact = NOW(6) WHERE customer_id = %[3]s;
		INSERT INTO %[2]s (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
			VALUES (%[3]s, 'NL', 'E', i, 'Y', 'C', CONCAT('DOC-', i));`, person, consent, id)
}

// people inserts so many rows in one transaction.
func people(table string, n int) string {
	return fmt.Sprintf(`INSERT INTO %s (last_name, first_name, birth_date)
		SELECT CONCAT('Nom ', i), CONCAT('Prénom ', i), '1970-01-01' FROM (%s) numbers WHERE i <= %d ORDER BY i`, table, numbers, n)
}

// numbers is a query of the numbers from 1 to a million as i, which both servers take.
var numbers = func() string {
	digit := "(SELECT 0 d" + strings.Repeat(" UNION ALL SELECT %d", 9) + ")"
	digit = fmt.Sprintf(digit, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	return "SELECT 1 + a.d + 10 * b.d + 100 * c.d + 1000 * d.d + 10000 * e.d + 100000 * f.d AS i FROM " +
		digit + " a, " + digit + " b, " + digit + " c, " + digit + " d, " + digit + " e, " + digit + " f"
}()

// ratioResult is a result that is judged by its ratio.
type ratioResult struct {
	result
	value float64
}

func (r *ratioResult) judge(target float64) {
	r.target, r.met = fmt.Sprintf("at most %.1f", target), r.value <= target
}

// rounds makes a backlog of so many row changes by a script, behind a position for each round, and drains it again and
// again, each time beside a bare loop of go-mysql that decodes every row and does nothing with it.
func (s *mysqlStage) rounds(ctx context.Context, o *options, name string, changes, events int, script string) (r ratioResult, peak float64, err error) {
	type round struct{ config, listen string }
	all := make([]round, o.rounds)
	for i := range all {
		if all[i].config, all[i].listen, err = s.begin(ctx, o.lethe, name+strconv.Itoa(i)); err != nil {
			return r, 0, err
		}
	}
	from, err := s.executed(ctx)
	if err != nil {
		return r, 0, err
	}
	fmt.Fprintf(os.Stderr, "%s: making a backlog of %d row changes\n", s.kind, changes)
	if err := s.run(ctx, "crm", script); err != nil {
		return r, 0, err
	}
	var ours, theirs []time.Duration
	cpu := time.Duration(0)
	for _, one := range all {
		took, err := s.bare(ctx, from, changes)
		if err != nil {
			return r, 0, err
		}
		theirs = append(theirs, took)
		used, err := s.capture(ctx, o.lethe, one.config, one.listen, events)
		if err != nil {
			return r, 0, err
		}
		ours, peak, cpu = append(ours, used.wall), max(peak, used.mb), max(cpu, used.cpu)
		fmt.Fprintf(os.Stderr, "go-mysql %.2f s, lethe %.2f s (start %.2f s) with %.2f s of CPU and %.0f MB\n", took.Seconds(), used.wall.Seconds(),
			used.startup.Seconds(), used.cpu.Seconds(), used.mb)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	a, b := ours[len(ours)/2], theirs[len(theirs)/2]
	r.value = a.Seconds() / b.Seconds()
	r.measured, r.beside = fmt.Sprintf("%.2f s (%.1f s of CPU)", a.Seconds(), cpu.Seconds()), fmt.Sprintf("bare go-mysql loop: %.2f s", b.Seconds())
	r.ratio = fmt.Sprintf("%.2f", r.value)
	return r, peak, nil
}

// begin sets a config up and lets capture run until it streams: its checkpoint says from then on where to begin.
func (s *mysqlStage) begin(ctx context.Context, lethe, name string) (path, listen string, err error) {
	if path, listen, err = s.configured(ctx, name); err != nil {
		return "", "", err
	}
	_, err = s.capture(ctx, lethe, path, listen, 0)
	return path, listen, err
}

// configured sets a config up.
func (s *mysqlStage) configured(ctx context.Context, name string) (path, listen string, err error) {
	return s.configure(ctx, name, func(values map[string]string) string {
		values["LETHE_DEMO_CRM"] = s.my.DSN("crm", "lethe")
		return demo.ConfigText(s.kind, demo.Postgres, values)
	}, s.my.DSN("crm", ""))
}

// bare reads the log from a position with go-mysql as it comes, until so many rows were decoded.
func (s *mysqlStage) bare(ctx context.Context, from string, rows int) (time.Duration, error) {
	host, portText, err := net.SplitHostPort(s.my.Addr())
	if err != nil {
		return 0, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return 0, err
	}
	flavor := gomysql.MySQLFlavor
	if s.kind == demo.MariaDB {
		flavor = gomysql.MariaDBFlavor
	}
	position, err := gomysql.ParseGTIDSet(flavor, from)
	if err != nil {
		return 0, err
	}
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: 4_000_000_000, Flavor: flavor, Host: host, Port: uint16(port), User: s.my.Root(), DisableRetrySync: true,
		Logger: slog.New(slog.DiscardHandler),
	})
	defer syncer.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	began := time.Now()
	stream, err := syncer.StartSyncGTID(position)
	if err != nil {
		return 0, err
	}
	for seen := 0; seen < rows; {
		event, err := stream.GetEvent(ctx)
		if err != nil {
			return 0, fmt.Errorf("reading with go-mysql after %d rows: %w", seen, err)
		}
		if e, ok := event.Event.(*replication.RowsEvent); ok && string(e.Table.Table) != "lethe_heartbeat" {
			if seen += len(e.Rows); e.Type() == replication.EnumRowsEventTypeUpdate {
				seen -= len(e.Rows) / 2
			}
		}
	}
	return time.Since(began), nil
}

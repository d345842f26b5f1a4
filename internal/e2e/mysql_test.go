package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"lethe/internal/testenv"
)

// mysqlWords turn the SQL of these tests into that of MySQL and MariaDB. They know what stands in the golden files and in the
// queries on the ledger, no more.
var mysqlWords = []struct {
	from *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`(?m)^alter table \w+ replica identity (full|using index \w+);?$`), ""},
	{regexp.MustCompile(`\bgenerated always as identity primary key\b`), "auto_increment primary key"},
	{regexp.MustCompile(`(\$\d+)::\w+`), "$1"},
	{regexp.MustCompile(`(\w+)::text\b`), "cast($1 as char)"},
	{regexp.MustCompile(`\btext\b`), "varchar(200)"}, // a key has a length
	{regexp.MustCompile(`\btimestamptz\b`), "datetime(6)"},
	{regexp.MustCompile(`\bjsonb\b`), "json"},
	{regexp.MustCompile(`\breferences (\w+)`), "references $1 (${1}_id)"},
	{regexp.MustCompile(`\bcreate index on (\w+) \((\w+)\)`), "create index ${1}_$2 on $1 ($2)"},
	{regexp.MustCompile(`\bselect from\b`), "select 1 from"},
	{regexp.MustCompile(`\blethe\.`), "lethe_"},
	{regexp.MustCompile(`\bnow\(\) - interval '(\d+) minute'`), "utc_timestamp(6) - interval $1 minute"},
	{regexp.MustCompile(`\bstring_agg\(((?:distinct )?\w+), ' '\)`), "group_concat($1 separator ' ')"},
	{regexp.MustCompile(`'infinity'`), "'9999-12-31'"},
}

func mysqlOf(statement string) string {
	for _, w := range mysqlWords {
		statement = w.from.ReplaceAllString(statement, w.to)
	}
	return statement
}

var numbered = regexp.MustCompile(`\$\d+`)

// mysqlArgs puts the arguments of $1, $2 … into the order of their places.
func mysqlArgs(statement string, args []any) (string, []any) {
	var out []any
	statement = numbered.ReplaceAllStringFunc(statement, func(p string) string {
		n, err := strconv.Atoi(p[1:])
		if err != nil || n > len(args) {
			return p
		}
		out = append(out, args[n-1])
		return "?"
	})
	return statement, out
}

// mysqlDatabase makes a database on a server, with a login for Lethe that has no right yet.
func mysqlDatabase(t *testing.T, server *testenv.MySQL, login, tables string) database {
	t.Helper()
	d := database{mysql: server, name: server.NewDatabase(t), run: login, verify: login}
	d.pool = server.Open(t, d.name)
	server.Exec(t, "", "create user '"+login+"'@'%'")
	t.Cleanup(func() { server.Exec(t, "", "drop user '"+login+"'@'%'") })
	d.commit(t, tables)
	return d
}

// login is how Lethe reaches the database as one of its roles; empty: as the one who may do everything.
func (d *database) login(role string) string {
	if d.mysql != nil {
		return d.mysql.DSN(d.name, role)
	}
	return d.DSN(d.name, role)
}

// commit runs statements in one transaction.
func (d *database) commit(t *testing.T, statements string) {
	t.Helper()
	if d.mysql == nil {
		d.Exec(t, d.name, statements)
		return
	}
	tx, err := d.pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for statement := range strings.SplitSeq(mysqlOf(statements), ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%v\n%s", err, statement)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// mysqlText is text for MySQL. Columns that hold one byte are booleans here.
func (d *database) mysqlText(ctx context.Context, query string, args ...any) (string, error) {
	query, args = mysqlArgs(mysqlOf(query), args)
	rows, err := d.pool.QueryContext(ctx, query, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return "", err
	}
	cells := make([]sql.NullString, len(types))
	into := make([]any, len(types))
	for i := range cells {
		into[i] = &cells[i]
	}
	var lines []string
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return "", err
		}
		line := make([]string, len(cells))
		for i, c := range cells {
			switch line[i] = c.String; {
			case !c.Valid:
				line[i] = "null"
			case types[i].DatabaseTypeName() == "TINYINT":
				line[i] = fmt.Sprint(c.String != "0")
			}
		}
		lines = append(lines, strings.Join(line, "|"))
	}
	return strings.Join(lines, "\n"), rows.Err()
}

// logNumber is the number that an event of the newest commit has in its order.
func (d *database) logNumber(ctx context.Context) (uint64, error) {
	if d.mysql == nil {
		var lsn int64
		err := d.conn.QueryRow(ctx, "select pg_current_wal_lsn() - '0/0'::pg_lsn").Scan(&lsn)
		return uint64(lsn), err
	}
	query, separator := "select @@global.gtid_executed", "-" // uuid:1-5
	if d.mysql.Flavor() == testenv.MariaDB {
		query = "select @@global.gtid_binlog_pos" // 0-1-5
	}
	var set string
	if err := d.pool.QueryRowContext(ctx, query).Scan(&set); err != nil {
		return 0, err
	}
	last := set[strings.LastIndexAny(set, separator+":")+1:]
	return strconv.ParseUint(last, 10, 64)
}

// holds waits until a condition holds.
func (w *world) holds(db *database, condition string, args ...any) {
	w.t.Helper()
	w.holdsWithin(db, soon, condition, args...)
}

func (w *world) holdsWithin(db *database, within time.Duration, condition string, args ...any) {
	w.t.Helper()
	if db.mysql != nil {
		w.want(db, within, "select coalesce(("+condition+"), 0) <> 0", "1", args...)
		return
	}
	w.want(db, within, condition, "true", args...)
}

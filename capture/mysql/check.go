package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
)

// Severity says what a Finding means for run.
type Severity string

// The severities: run refuses to start with an error.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// The codes of findings. They are stable: tools may read them.
const (
	CodeVersionOld       = "version_too_old"
	CodeVersionUntested  = "version_untested"
	CodeReadOnly         = "server_is_read_only"
	CodeBinlogOff        = "binlog_off"
	CodeBinlogFormat     = "binlog_format"
	CodeRowImage         = "binlog_row_image"
	CodeRowMetadata      = "binlog_row_metadata"
	CodeRowValueOptions  = "binlog_row_value_options"
	CodeGTIDOff          = "gtid_off"
	CodeDomains          = "replication_domains"
	CodeBinlogExpiry     = "binlog_expiry"
	CodeBinlogFilter     = "binlog_filter"
	CodeServerID         = "server_id"
	CodeAccountMissing   = "login_missing"
	CodeAccountPrivilege = "login_lacks_privilege"
	CodeHeartbeatMissing = "heartbeat_missing"
	CodeHeartbeatDenied  = "heartbeat_denied"
	CodeTableMissing     = "table_missing"
	CodeTableKind        = "table_kind"
	CodeTableEngine      = "table_engine"
	CodeTableDenied      = "table_denied"
	CodeTableName        = "table_name_case"
	CodeColumnMissing    = "column_missing"
	CodeColumnType       = "column_type"
	CodeColumnGenerated  = "column_generated"
	CodeColumnCharset    = "column_charset"
	CodeColumnFormat     = "column_format_old"
	CodeKeyCollation     = "key_collation"
	CodeKeySpellings     = "key_spellings"
	CodeCascade          = "cascade_unseen"
	CodeForeignKeys      = "foreign_keys_unread"
	CodeTableKeyless     = "table_without_key"
	CodeKeyDenied        = "key_denied"
)

// Finding is something that Check found.
type Finding struct {
	Code     string
	Severity Severity
	Object   string // table, column, login or setting
	Message  string // one sentence, with what to do where FixSQL does not say it
	// FixSQL are the statements that mend it, to be run by the owner, one by one and in this order. All findings together
	// are in the order in which their statements depend on each other.
	FixSQL []string
	// byOwner marks statements that Setup leaves to a person: they change the server or the application's tables, not
	// Lethe's part of them.
	byOwner bool
}

// Check compares the source with what the mapping needs, with Lethe's own login, and changes nothing. Findings are in the
// order in which their statements depend on each other: server, login, heartbeat, tables. The error is one of reaching or
// reading the server. What the login may not see it cannot compare: where it lacks privileges there may be more to find
// once it has them.
func Check(ctx context.Context, o Options) ([]Finding, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return inspect(ctx, o, o.Login, false)
}

// inspect connects and looks.
func inspect(ctx context.Context, o Options, login mysqlconn.Login, owner bool) (findings []Finding, err error) {
	conn, closing, err := ownConnection(ctx, login)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closing()) }()
	in := &inspection{o: o, conn: conn, owner: owner}
	if err := in.run(ctx); err != nil {
		return nil, err
	}
	return in.findings, nil
}

// ownConnection opens one connection for a command. Its session keeps to itself: no sql_mode of the server changes what a
// statement means, and no statement waits long for a lock of the application.
func ownConnection(ctx context.Context, login mysqlconn.Login) (*sql.Conn, func() error, error) {
	cfg, err := login.Config()
	if err != nil {
		return nil, nil, err
	}
	for name, value := range sessionSettings {
		cfg.Params[name] = value
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("preparing the connection to the source: %w", pii.DriverError(err))
	}
	db := sql.OpenDB(connector)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connecting to the source: %w", pii.DriverError(err)), pii.DriverError(db.Close()))
	}
	return conn, func() error { return errors.Join(pii.DriverError(conn.Close()), pii.DriverError(db.Close())) }, nil
}

// inspection gathers findings.
type inspection struct {
	o        Options
	conn     *sql.Conn
	owner    bool // the connection is an owner's, who sees everything
	mariadb  bool
	version  version
	settings map[string]string // global variables
	account  string            // Lethe's login, quoted
	grants   grants
	findings []Finding
}

func (in *inspection) add(severity Severity, code, object, message string, fix ...string) *Finding {
	in.findings = append(in.findings, Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
	return &in.findings[len(in.findings)-1]
}

func (in *inspection) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		in.readSettings, in.server, in.binlog, in.filters, in.login, in.heartbeat, in.tableStates,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// version is that of a server.
type version struct{ major, minor, patch int }

func parseVersion(text string) (v version) {
	numbers, _, _ := strings.Cut(text, "-")
	for i, part := range strings.SplitN(numbers, ".", 3) {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		*[]*int{&v.major, &v.minor, &v.patch}[i] = n
	}
	return v
}

func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

func (in *inspection) readSettings(ctx context.Context) error {
	in.settings = map[string]string{}
	err := in.each(ctx, "SHOW GLOBAL VARIABLES", func(row []sql.NullString) {
		in.settings[strings.ToLower(row[0].String)] = row[1].String
	})
	if err != nil {
		return fmt.Errorf("reading the source's settings: %w", err)
	}
	text := in.settings["version"]
	in.mariadb = strings.Contains(strings.ToLower(text), "mariadb")
	in.version = parseVersion(text)
	return nil
}

// each runs a query and gives every row to fn. Its errors are reduced.
func (in *inspection) each(ctx context.Context, query string, fn func(row []sql.NullString), args ...any) error {
	return eachRow(ctx, in.conn, query, fn, args...)
}

func eachRow(ctx context.Context, conn *sql.Conn, query string, fn func(row []sql.NullString), args ...any) (err error) {
	rows, err := conn.QueryContext(ctx, query, args...)
	if err != nil {
		return pii.DriverError(err)
	}
	defer func() { err = errors.Join(err, pii.DriverError(rows.Close())) }()
	columns, err := rows.Columns()
	if err != nil {
		return pii.DriverError(err)
	}
	for rows.Next() {
		row, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			return pii.DriverError(err)
		}
		fn(row)
	}
	return pii.DriverError(rows.Err())
}

func (in *inspection) number(setting string) int64 {
	n, err := strconv.ParseFloat(in.settings[setting], 64) // MariaDB has days with a fraction
	if err != nil {
		return 0
	}
	return int64(n)
}

func (in *inspection) product() string {
	if in.mariadb {
		return "MariaDB"
	}
	return "MySQL"
}

func (in *inspection) server(context.Context) error {
	v := in.settings["version"]
	oldest, newest := [2]int{8, 0}, 9
	if in.mariadb {
		oldest, newest = [2]int{10, 6}, 11
	}
	switch {
	case in.version.before(oldest[0], oldest[1]):
		in.add(SeverityError, CodeVersionOld, "version", fmt.Sprintf("%s %s is too old: what the log has to tell came with %d.%d", in.product(), v, oldest[0], oldest[1]))
	case in.version.major > newest:
		in.add(SeverityWarning, CodeVersionUntested, "version", fmt.Sprintf("%s %s is newer than what this version of Lethe was tested with", in.product(), v))
	}
	if in.settings["read_only"] != "OFF" {
		in.add(SeverityError, CodeReadOnly, "read_only", "the server is read-only, as a replica is; the dsn has to lead to the primary")
	}
	switch id := in.settings["server_id"]; {
	case id == "0":
		in.add(SeverityError, CodeServerID, "server_id", "server_id is 0: the server lets no replica read its log; set it in the option file and restart")
	case in.o.ServerID != 0 && id == strconv.FormatUint(uint64(in.o.ServerID), 10):
		in.add(SeverityError, CodeServerID, "server_id", "source.mysql.server_id is the server's own id; give Lethe another")
	}
	return nil
}

// persist is how a setting is changed so that it holds after a restart, as far as a statement can do that.
func (in *inspection) persist(name, value string) string {
	if in.mariadb {
		return "SET GLOBAL " + name + " = " + value
	}
	return "SET PERSIST " + name + " = " + value
}

// inOptionFile is what a fix of persist leaves to do.
func (in *inspection) inOptionFile() string {
	if in.mariadb {
		return "; write it into the option file as well, and let open sessions connect again, which keep what they have"
	}
	return "; open sessions keep what they have until they connect again"
}

func (in *inspection) binlog(context.Context) error {
	if in.settings["log_bin"] != "ON" {
		in.add(SeverityError, CodeBinlogOff, "log_bin", "the server writes no binary log: set log_bin (and server_id) in the option file and restart")
		return nil
	}
	for _, s := range []struct{ name, want, code, why string }{
		{"binlog_format", "ROW", CodeBinlogFormat, "changes are in the log as statements, which do not tell what they changed"},
		{"binlog_row_image", "FULL", CodeRowImage, "rows are in the log without the columns that did not change"},
		{"binlog_row_metadata", "FULL", CodeRowMetadata, "the log does not name the columns of a table"},
	} {
		value, known := in.settings[s.name]
		if known && !strings.EqualFold(value, s.want) {
			in.add(SeverityError, s.code, s.name, fmt.Sprintf("%s is %s and has to be %s: %s%s", s.name, value, s.want, s.why, in.inOptionFile()),
				in.persist(s.name, "'"+s.want+"'")).byOwner = true
		}
	}
	if strings.Contains(strings.ToUpper(in.settings["binlog_row_value_options"]), "PARTIAL_JSON") {
		in.add(SeverityWarning, CodeRowValueOptions, "binlog_row_value_options",
			"JSON columns may be in the log as differences to their old value; capture stops at the first one of a mapped column"+in.inOptionFile(),
			in.persist("binlog_row_value_options", "''")).byOwner = true
	}
	in.gtid()
	in.expiry()
	return nil
}

func (in *inspection) gtid() {
	if in.mariadb {
		domains := map[string]bool{}
		for position := range strings.SplitSeq(in.settings["gtid_binlog_pos"], ",") {
			if domain, _, ok := strings.Cut(strings.TrimSpace(position), "-"); ok {
				domains[domain] = true
			}
		}
		if own := in.settings["gtid_domain_id"]; len(domains) > 1 {
			in.add(SeverityWarning, CodeDomains, "gtid_domain_id", fmt.Sprintf("the log has transactions of %d replication domains, and Lethe reads domain %s: "+
				"two domains have no order between them, so mapped tables have to be written in that one only", len(domains), own))
		}
		return
	}
	mode := in.settings["gtid_mode"]
	if mode == "ON" {
		return
	}
	severity, what := SeverityError, "source.mysql.require_gtid is set"
	if !in.o.RequireGTID {
		severity, what = SeverityWarning, "Lethe follows this one server only, and any change of server is a gap"
	}
	f := in.add(severity, CodeGTIDOff, "gtid_mode", fmt.Sprintf("gtid_mode is %s: %s; each step may be taken while the server runs, when the "+
		"one before is done on all servers (MySQL manual, \"Changing GTID Mode Online\")", mode, what))
	f.byOwner = true
	f.FixSQL = []string{in.persist("enforce_gtid_consistency", "'WARN'"), in.persist("enforce_gtid_consistency", "'ON'")}
	steps := []string{"OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"}
	for i, step := range steps {
		if step == mode {
			for _, next := range steps[i+1:] {
				f.FixSQL = append(f.FixSQL, in.persist("gtid_mode", "'"+next+"'"))
			}
		}
	}
}

// safeExpiry is the shortest time that the server should keep its log: a weekend, and what comes before it is noticed.
const safeExpiry = 3 * 24 * 3600

func (in *inspection) expiry() {
	seconds := in.number("binlog_expire_logs_seconds")
	if seconds == 0 {
		seconds = in.number("expire_logs_days") * 24 * 3600
	}
	if auto, known := in.settings["binlog_expire_logs_auto_purge"]; known && auto != "ON" {
		seconds = 0
	}
	if seconds > 0 && seconds < safeExpiry {
		in.add(SeverityWarning, CodeBinlogExpiry, "binlog_expire_logs_seconds", fmt.Sprintf(
			"the server deletes its log after %d hours, read or not: a stop of Lethe that lasts longer loses changes; a week is a good value%s", seconds/3600, in.inOptionFile()),
			in.persist("binlog_expire_logs_seconds", "604800")).byOwner = true
	}
	if limit := in.number("max_binlog_total_size"); limit > 0 && limit < in.o.MaxBinlogLag { // MariaDB 11.4
		in.add(SeverityWarning, CodeBinlogExpiry, "max_binlog_total_size", fmt.Sprintf(
			"the server deletes its log beyond %d MB, read or not, which is less than max_binlog_lag: changes are lost before the alarm rings", limit>>20))
	}
}

// filters looks for databases that the server leaves out of its log. They are no settings on most versions.
func (in *inspection) filters(ctx context.Context) error {
	if in.settings["log_bin"] != "ON" {
		return nil
	}
	show := "SHOW BINARY LOG STATUS"
	if in.mariadb || in.version.before(8, 2) {
		show = "SHOW MASTER STATUS"
	}
	var only, ignored string
	err := in.each(ctx, show, func(row []sql.NullString) {
		if len(row) >= 4 {
			only, ignored = row[2].String, row[3].String
		}
	})
	if pii.MySQLNumber(err) == privilegeDenied {
		return nil // the login's own finding says so
	}
	if err != nil {
		return fmt.Errorf("reading where the source's log stands: %w", err)
	}
	seen := map[string]bool{}
	for _, table := range in.o.tables() {
		database, _, err := splitTable(table)
		if err != nil || seen[database] {
			continue
		}
		seen[database] = true
		if only != "" && !listed(only, database) || listed(ignored, database) {
			in.add(SeverityError, CodeBinlogFilter, database, "the server leaves this database out of its log (binlog_do_db or binlog_ignore_db in the "+
				"option file): take it out of the filter and restart")
		}
	}
	return nil
}

func listed(list, name string) bool {
	for entry := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(entry) == name {
			return true
		}
	}
	return false
}

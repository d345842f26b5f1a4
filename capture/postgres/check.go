package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
	CodeVersionOld        = "version_too_old"
	CodeVersionUntested   = "version_untested"
	CodeStandby           = "server_is_standby"
	CodeWALLevel          = "wal_level"
	CodeKeepSizeUnlimited = "max_slot_wal_keep_size_unlimited"
	CodeKeepSizeLow       = "max_slot_wal_keep_size_low"
	CodeIdleTimeout       = "idle_replication_slot_timeout"
	CodeRoleMissing       = "role_missing"
	CodeRoleReplication   = "role_not_replication"
	CodeRoleSuperuser     = "role_superuser"
	CodeReplicationDenied = "replication_connection_refused"
	CodeHeartbeatDenied   = "heartbeat_denied"
	CodeTableMissing      = "table_missing"
	CodeTableKind         = "table_kind"
	CodeTableUnlogged     = "table_unlogged"
	CodeColumnMissing     = "column_missing"
	CodeColumnGenerated   = "column_generated"
	CodeIdentityNothing   = "identity_nothing"
	CodeDeletesUnseen     = "deletes_unseen"
	CodeOldUnseen         = "old_values_unseen"
	CodePublication       = "publication_missing"
	CodePublicationAll    = "publication_all_tables"
	CodePublicationTable  = "publication_lacks_table"
	CodePublicationColumn = "publication_lacks_column"
	CodePublicationList   = "publication_column_list_unsafe"
	CodePublicationFilter = "publication_row_filter"
	CodePublicationOp     = "publication_lacks_operation"
	CodePublicationRoot   = "publication_not_via_root"
	CodePublicationExtra  = "publication_extra_table"
	CodeSlotMissing       = "slot_missing"
	CodeSlotWrong         = "slot_wrong"
	CodeSlotLost          = "slot_lost"
	CodeSlotTwoPhase      = "slot_two_phase"
	CodeSlotsFull         = "max_replication_slots"
	CodeTableKeyless      = "table_without_key"
	CodeSelectDenied      = "select_denied"
	CodeRowSecurity       = "row_level_security"
)

// Finding is something that Check found.
type Finding struct {
	Code     string
	Severity Severity
	Object   string // table, publication, slot, role or setting
	Message  string // one sentence, with what to do where FixSQL does not say it
	// FixSQL are the statements that mend it, to be run by the owner, one by one and in this order. All findings together
	// are in the order in which their statements depend on each other.
	FixSQL []string
	// byOwner marks statements that Setup leaves to a person: they change the server, not Lethe's part of it.
	byOwner bool
}

// Supported are the major versions that the tests run on, and what lies between.
const (
	oldestVersion = 15
	newestVersion = 18
)

// Check compares the source with what the mapping needs, with Lethe's own login, and changes nothing. Findings are in the
// order in which their statements depend on each other: server, role, tables, identities, publication, slot. The error is
// one of reaching or reading the server.
func Check(ctx context.Context, o Options) ([]Finding, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, err := connectSQL(ctx, o.DSN, o)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn.PgConn())
	in := &inspection{o: o, conn: conn, role: conn.Config().User}
	if err := in.run(ctx); err != nil {
		return nil, err
	}
	if err := in.replication(ctx); err != nil {
		return nil, err
	}
	return in.findings, nil
}

// inspection gathers findings.
type inspection struct {
	o        Options
	conn     *pgx.Conn
	role     string
	version  int
	findings []Finding
	tables   map[string]*catalogTable // mapped and there
	// planned is what the identity of each table will be when the findings are mended: the publication has to fit that.
	planned map[string]identityPlan
	pub     *publication
	// later are the identities of tables that are published with a column list: changed before the list covers them, they
	// would make the application's own UPDATEs fail.
	later []Finding
}

func (in *inspection) add(severity Severity, code, object, message string, fix ...string) *Finding {
	in.findings = append(in.findings, Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
	return &in.findings[len(in.findings)-1]
}

func (in *inspection) run(ctx context.Context) error {
	in.tables, in.planned = map[string]*catalogTable{}, map[string]identityPlan{}
	var err error
	if in.pub, err = readPublication(ctx, in.conn, in.o.Publication); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{in.server, in.roleState, in.tableStates} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	in.publicationState()
	in.findings = append(in.findings, in.later...)
	return in.slotState(ctx)
}

// setting reads a setting in its own unit; "" where the server does not know it.
func (in *inspection) setting(ctx context.Context, name string) (string, error) {
	var v string
	err := in.conn.QueryRow(ctx, "SELECT coalesce((SELECT setting FROM pg_catalog.pg_settings WHERE name = $1), '')", name).Scan(&v)
	if err != nil {
		return "", fmt.Errorf("reading setting %s: %w", name, pii.DriverError(err))
	}
	return v, nil
}

func (in *inspection) number(ctx context.Context, name string) (int64, error) {
	var v int64
	err := in.conn.QueryRow(ctx, "SELECT coalesce((SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = $1), 0)", name).Scan(&v)
	if err != nil {
		return 0, fmt.Errorf("reading setting %s: %w", name, pii.DriverError(err))
	}
	return v, nil
}

func (in *inspection) server(ctx context.Context) error {
	version, err := in.number(ctx, "server_version_num")
	if err != nil {
		return err
	}
	in.version = int(version / 10000)
	switch {
	case in.version < oldestVersion:
		in.add(SeverityError, CodeVersionOld, "server_version",
			fmt.Sprintf("PostgreSQL %d is too old: column lists and what else is needed came with %d", in.version, oldestVersion))
	case in.version > newestVersion:
		in.add(SeverityWarning, CodeVersionUntested, "server_version",
			fmt.Sprintf("PostgreSQL %d is newer than what this version of Lethe was tested with (%d to %d)", in.version, oldestVersion, newestVersion))
	}
	var standby bool
	if err := in.conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return fmt.Errorf("looking whether the source is the primary: %w", pii.DriverError(err))
	}
	if standby {
		in.add(SeverityError, CodeStandby, "server", "the server is a standby; the DSN has to lead to the primary")
	}
	level, err := in.setting(ctx, "wal_level")
	if err != nil {
		return err
	}
	if level != "logical" {
		in.add(SeverityError, CodeWALLevel, "wal_level",
			fmt.Sprintf("wal_level is %s; it has to be logical, which takes a restart of the server", level),
			"ALTER SYSTEM SET wal_level = 'logical'").byOwner = true
	}
	return in.limits(ctx)
}

// limits are the settings by which the server protects itself from a reader that stays away.
func (in *inspection) limits(ctx context.Context) error {
	const gb = int64(1) << 30
	keep, err := in.number(ctx, "max_slot_wal_keep_size") // MB
	if err != nil {
		return err
	}
	want := max(in.o.MaxRetainedWAL*2, gb)
	fix := []string{
		fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'", want>>20), "SELECT pg_reload_conf()",
	}
	switch {
	case keep < 0:
		in.add(SeverityError, CodeKeepSizeUnlimited, "max_slot_wal_keep_size",
			"max_slot_wal_keep_size is unlimited: if Lethe stays away for long, its slot fills the disk of the primary", fix...).byOwner = true
	case keep<<20 <= in.o.MaxRetainedWAL:
		in.add(SeverityWarning, CodeKeepSizeLow, "max_slot_wal_keep_size",
			fmt.Sprintf("max_slot_wal_keep_size (%d MB) is not above max_retained_wal (%d MB): the slot is lost before the alarm rings",
				keep, in.o.MaxRetainedWAL>>20), fix...).byOwner = true
	}
	idle, err := in.number(ctx, "idle_replication_slot_timeout") // PostgreSQL 18, seconds
	if err != nil {
		return err
	}
	if idle > 0 {
		in.add(SeverityWarning, CodeIdleTimeout, "idle_replication_slot_timeout",
			fmt.Sprintf("idle_replication_slot_timeout is %d s: a stop of Lethe that lasts longer loses the slot", idle))
	}
	return nil
}

func (in *inspection) roleState(ctx context.Context) error {
	var super, replication, exists bool
	err := in.conn.QueryRow(ctx, `SELECT coalesce(bool_or(rolsuper), false), coalesce(bool_or(rolreplication), false), count(*) > 0
		FROM pg_catalog.pg_roles WHERE rolname = $1`, in.role).Scan(&super, &replication, &exists)
	if err != nil {
		return fmt.Errorf("reading role %s: %w", in.role, pii.DriverError(err))
	}
	role := quoteIdentifier(in.role)
	switch {
	case !exists:
		in.add(SeverityError, CodeRoleMissing, in.role, "the role that Lethe logs in with does not exist; give it a password or certificate as well",
			"CREATE ROLE "+role+" LOGIN REPLICATION")
		return nil
	case super:
		in.add(SeverityWarning, CodeRoleSuperuser, in.role, "the role is a superuser; LOGIN and REPLICATION are all that capture needs")
	case !replication:
		in.add(SeverityError, CodeRoleReplication, in.role, "the role may not replicate", "ALTER ROLE "+role+" REPLICATION")
	}
	var may bool
	err = in.conn.QueryRow(ctx, `SELECT coalesce(bool_or(has_function_privilege($1, p.oid, 'execute')), false) FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = 'pg_logical_emit_message' AND p.proargtypes[2] = 'text'::regtype`,
		in.role).Scan(&may)
	if err != nil {
		return fmt.Errorf("reading the privileges of role %s: %w", in.role, pii.DriverError(err))
	}
	if !may {
		in.add(SeverityError, CodeHeartbeatDenied, in.role, "the role may not write heartbeats into the log",
			"GRANT EXECUTE ON FUNCTION pg_catalog."+in.emitSignature()+" TO "+role)
	}
	return nil
}

// emitSignature is that of pg_logical_emit_message: PostgreSQL 17 added a parameter.
func (in *inspection) emitSignature() string {
	if in.version >= 17 {
		return "pg_logical_emit_message(boolean, text, text, boolean)"
	}
	return "pg_logical_emit_message(boolean, text, text)"
}

func (in *inspection) tableStates(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(in.o.Needs)) {
		t, err := readTable(ctx, in.conn, name)
		if err != nil {
			return err
		}
		switch {
		case t == nil && in.o.Needs[name].Optional:
			in.add(SeverityWarning, CodeTableMissing, name, "the table does not exist in this database; it is mapped as optional")
		case t == nil:
			in.add(SeverityError, CodeTableMissing, name, "the mapped table does not exist in this database; correct the mapping")
		case t.kind != "r" && t.kind != "p":
			in.add(SeverityError, CodeTableKind, name, "the mapped relation is not a table: changes of views and foreign tables are not in the log")
		case t.unlogged:
			in.add(SeverityError, CodeTableUnlogged, name, "the mapped table is not logged: its changes are not in the log",
				"ALTER TABLE "+t.quoted()+" SET LOGGED").byOwner = true
		default:
			in.tables[name] = t
			in.columnStates(t)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.tables)) {
		known := len(in.findings)
		in.identityState(in.tables[name], in.o.Needs[name])
		if err := in.passStates(ctx, in.tables[name]); err != nil {
			return err
		}
		if in.pub != nil && in.pub.tables[name].list {
			in.later = append(in.later, in.findings[known:]...)
			in.findings = in.findings[:known]
		}
	}
	return nil
}

func (in *inspection) columnStates(t *catalogTable) {
	for _, col := range in.o.Needs[t.full()].Columns {
		switch c := t.column(col); {
		case c == nil:
			in.add(SeverityError, CodeColumnMissing, t.full()+"."+col, "the mapped column does not exist; correct the mapping")
		case c.generated:
			in.add(SeverityError, CodeColumnGenerated, t.full()+"."+col, "the mapped column is generated: its values are not in the log; map what it is made of")
		}
	}
	for _, col := range in.o.Needs[t.full()].Mapped {
		if t.column(col) == nil && !slices.Contains(in.o.Needs[t.full()].Columns, col) {
			in.add(SeverityError, CodeColumnMissing, t.full()+"."+col, "the mapped column does not exist; correct the mapping")
		}
	}
}

// replication opens a replication connection as run does: what pg_hba.conf says cannot be read otherwise.
func (in *inspection) replication(ctx context.Context) error {
	for i := range in.findings {
		if code := in.findings[i].Code; code == CodeRoleReplication || code == CodeStandby {
			return nil // said already
		}
	}
	conn, err := (&Source{o: in.o}).connectReplication(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		in.add(SeverityError, CodeReplicationDenied, in.role, fmt.Sprintf(
			"a replication connection is refused (%v): pg_hba.conf needs a line with the database's own name for this role and host "+
				"(not the word replication, which would allow base backups), and max_wal_senders a free place", err))
		return nil
	}
	closeConn(ctx, conn.PgConn)
	return nil
}

func (in *inspection) slotState(ctx context.Context) error {
	slot, err := readSlot(ctx, in.conn.PgConn(), in.o.Slot)
	if err != nil {
		return err
	}
	name := "'" + in.o.Slot + "'"
	create := "SELECT pg_create_logical_replication_slot(" + name + ", 'pgoutput')"
	switch {
	case slot == nil:
		if err := in.freeSlot(ctx); err != nil {
			return err
		}
		in.add(SeverityError, CodeSlotMissing, in.o.Slot, "the replication slot does not exist; it is made after the publication", create)
	case slot.slotType != "logical" || slot.plugin != "pgoutput" || slot.temporary:
		in.add(SeverityError, CodeSlotWrong, in.o.Slot, fmt.Sprintf("the slot is not a permanent logical one with the plugin pgoutput (it is %s, %s); "+
			"name another in the config", slot.slotType, slot.plugin))
	case !slot.here:
		in.add(SeverityError, CodeSlotWrong, in.o.Slot, "the slot belongs to another database; name another in the config")
	case slot.twoPhase:
		in.add(SeverityError, CodeSlotTwoPhase, in.o.Slot, "the slot decodes prepared transactions before they are committed; make it again without two_phase",
			"SELECT pg_drop_replication_slot("+name+")", create).byOwner = true
	case slot.walStatus == "lost" || slot.restart == 0:
		in.add(SeverityError, CodeSlotLost, in.o.Slot, "the server gave up the slot; making it again is a gap that is to be accepted, with a pass to follow",
			"SELECT pg_drop_replication_slot("+name+")", create).byOwner = true
	}
	return nil
}

func (in *inspection) freeSlot(ctx context.Context) error {
	var used, limit int64
	err := in.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots),
		(SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'max_replication_slots')`).Scan(&used, &limit)
	if err != nil {
		return fmt.Errorf("counting replication slots: %w", pii.DriverError(err))
	}
	if used >= limit {
		in.add(SeverityError, CodeSlotsFull, "max_replication_slots",
			fmt.Sprintf("all %d replication slots are taken; raising the limit takes a restart of the server", limit),
			fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d", limit+4)).byOwner = true
	}
	return nil
}

// roleOf is the user of a DSN.
func roleOf(dsn string) (string, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return "", fmt.Errorf("reading the source's DSN: %w", pii.DriverError(err))
	}
	return cfg.User, nil
}

func quotedList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteIdentifier(n)
	}
	return strings.Join(quoted, ", ")
}

package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"lethe/internal/pii"
)

// catalogTable is what the catalog says of a mapped table.
type catalogTable struct {
	database, name string
	kind, engine   string
	columns        []catalogColumn // those that the login may see
}

type catalogColumn struct {
	name      string
	dataType  string // lower case, without lengths
	full      string // with everything that the server adds in comments
	charset   string // empty: none
	collation string
	fraction  bool // a temporal type with digits of a second
	generated bool
}

func (t *catalogTable) full() string { return t.database + "." + t.name }

func (t *catalogTable) quoted() string { return quoteName(t.database) + "." + quoteName(t.name) }

func (t *catalogTable) column(name string) *catalogColumn {
	for i := range t.columns {
		if t.columns[i].name == name {
			return &t.columns[i]
		}
	}
	return nil
}

// readTable reads a table as the catalog has it, under its own spelling; nil where the login does not see it.
func (in *inspection) readTable(ctx context.Context, database, name string) (*catalogTable, error) {
	var t *catalogTable
	err := in.each(ctx, `SELECT table_schema, table_name, table_type, COALESCE(engine, '') FROM information_schema.tables
		WHERE table_schema = ? AND table_name = ?`, func(row []sql.NullString) {
		if found := (&catalogTable{database: row[0].String, name: row[1].String, kind: row[2].String, engine: row[3].String}); t == nil || found.full() == database+"."+name {
			t = found
		}
	}, database, name)
	if err != nil || t == nil {
		return nil, err
	}
	err = in.each(ctx, `SELECT column_name, LOWER(data_type), LOWER(column_type), COALESCE(character_set_name, ''), COALESCE(collation_name, ''),
		COALESCE(datetime_precision, 0), COALESCE(generation_expression, '') FROM information_schema.columns WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position`,
		func(row []sql.NullString) {
			t.columns = append(t.columns, catalogColumn{
				name: row[0].String, dataType: row[1].String, full: row[2].String, charset: row[3].String, collation: row[4].String, fraction: row[5].String != "0",
				generated: row[6].String != "",
			})
		}, t.database, t.name)
	return t, err
}

func (in *inspection) tableStates(ctx context.Context) error {
	found := map[string]*catalogTable{}
	for _, name := range in.o.tables() {
		database, table, err := splitTable(name)
		if err != nil {
			in.add(SeverityError, CodeTableMissing, name, "the mapped table is not named as database.table; correct the mapping")
			continue
		}
		t, err := in.readTable(ctx, database, table)
		if err != nil {
			return fmt.Errorf("reading table %s: %w", name, err)
		}
		if t == nil {
			if err := in.unseenTable(ctx, name, database, table); err != nil {
				return err
			}
			continue
		}
		if in.tableState(t, name) {
			found[name] = t
		}
	}
	for _, name := range in.o.tables() {
		if t := found[name]; t != nil {
			if err := in.columnStates(ctx, t); err != nil {
				return err
			}
		}
	}
	return in.foreignKeys(ctx, found)
}

// unseenTable tells a table that does not exist from one that the login may not see.
func (in *inspection) unseenTable(ctx context.Context, name, database, table string) error {
	err := in.each(ctx, "SELECT 1 FROM "+quoteTable(name)+" WHERE 1 = 0", func([]sql.NullString) {})
	switch pii.MySQLNumber(err) {
	case databaseDenied, tableDenied, columnDenied:
		in.denied(name, in.grants.lacks("SELECT", database, table, in.readColumns(name)...))
	case unknownTable, unknownDatabase:
		if in.o.Needs[name].Optional {
			in.add(SeverityWarning, CodeTableMissing, name, "the table does not exist; it is mapped as optional")
		} else {
			in.add(SeverityError, CodeTableMissing, name, "the mapped table does not exist; correct the mapping")
		}
	default:
		if err != nil {
			return fmt.Errorf("reading table %s: %w", name, err)
		}
	}
	return nil
}

// readColumns are the columns that the login has to be allowed to read.
func (in *inspection) readColumns(name string) []string {
	needs := in.o.Needs[name]
	columns := append(slices.Clone(needs.Columns), needs.Mapped...)
	slices.Sort(columns)
	return slices.Compact(columns)
}

func (in *inspection) denied(name string, columns []string) {
	if len(columns) == 0 {
		return
	}
	in.add(SeverityError, CodeTableDenied, name, "the login may not read what is mapped of the table", in.grantSelect(name, columns))
}

// grantSelect is the statement that lets the login read columns; one empty name is the table.
func (in *inspection) grantSelect(name string, columns []string) string {
	list := ""
	if columns[0] != "" {
		quoted := make([]string, len(columns))
		for i, c := range columns {
			quoted[i] = quoteName(c)
		}
		list = " (" + strings.Join(quoted, ", ") + ")"
	}
	return "GRANT SELECT" + list + " ON " + quoteTable(name) + " TO " + in.account
}

// transactional are the engines whose changes are in the log exactly if their transaction was committed.
var transactional = []string{"InnoDB", "ROCKSDB", "TokuDB", "ndbcluster"}

// tableState looks at a table as a whole. It returns whether its columns are worth a look.
func (in *inspection) tableState(t *catalogTable, name string) bool {
	switch {
	case t.full() != name:
		in.add(SeverityError, CodeTableName, name, fmt.Sprintf("the table is called %s, and so it is in the log; correct the mapping", t.full()))
		return false
	case t.kind == "SYSTEM VERSIONED":
		in.add(SeverityError, CodeTableKind, name, "the table keeps the old versions of its rows, and the log has them as rows like any other: a deletion as an "+
			"update, and an old consent as a new one", "SET SESSION system_versioning_alter_history = KEEP", "ALTER TABLE "+t.quoted()+" DROP SYSTEM VERSIONING").byOwner = true
	case !strings.HasSuffix(t.kind, "BASE TABLE"):
		in.add(SeverityError, CodeTableKind, name, "the mapped name is that of a view: its changes are in the log under the tables below; map those")
		return false
	case !slices.ContainsFunc(transactional, func(e string) bool { return strings.EqualFold(e, t.engine) }):
		in.add(SeverityError, CodeTableEngine, name, fmt.Sprintf("the table's engine is %s, which knows no transactions: what was rolled back stays, and what "+
			"the log has need not be what the table has", t.engine), "ALTER TABLE "+t.quoted()+" ENGINE = InnoDB").byOwner = true
	}
	return true
}

// refusedTypes cannot be read, and why.
var refusedTypes = map[string]string{
	"uuid": "is in the log as its bytes in another order", "inet4": "is in the log as its bytes", "inet6": "is in the log as its bytes",
}

func (in *inspection) columnStates(ctx context.Context, t *catalogTable) error {
	name := t.full()
	columns := in.readColumns(name)
	var seen, unseen []string
	for _, col := range columns {
		if t.column(col) == nil {
			unseen = append(unseen, col)
		} else {
			seen = append(seen, col)
		}
	}
	if err := in.unseenColumns(ctx, t, unseen); err != nil {
		return err
	}
	in.denied(name, present(in.grants.lacks("SELECT", t.database, t.name, seen...), len(seen)))
	for i := range t.columns {
		if c := &t.columns[i]; strings.Contains(c.full, "mariadb-5.3") && c.fraction {
			// Rows are passed over by lengths, so it does not help that a column is not mapped.
			in.add(SeverityError, CodeColumnFormat, name+"."+c.name, "the column is stored as before MariaDB 10.1, with fractions of a second: the log does not "+
				"tell its length", "ALTER TABLE "+t.quoted()+" FORCE").byOwner = true
		}
	}
	for _, col := range in.o.Needs[name].Columns {
		if c := t.column(col); c != nil {
			in.columnState(t, c)
		}
	}
	in.keyStates(t)
	return in.walkState(ctx, t)
}

// walkState looks whether a pass can walk along the table.
func (in *inspection) walkState(ctx context.Context, t *catalogTable) error {
	indexes, err := in.readIndexes(ctx, t)
	switch pii.MySQLNumber(err) {
	case 0:
	case databaseDenied, tableDenied, columnDenied:
		return nil // the table's own finding says so
	}
	if err != nil {
		return fmt.Errorf("reading the indexes of table %s: %w", t.full(), err)
	}
	index, why := chooseIndex(indexes)
	if index == nil {
		in.add(SeverityWarning, CodeTableKeyless, t.full(), "no pass can read the table: "+why+"; what its log leaves out (a cascade, a session without log, a gap) is "+
			"then never found. Give it a primary key")
		return nil
	}
	mapped := in.readColumns(t.full())
	alone := slices.DeleteFunc(slices.Clone(index.columns), func(c string) bool { return slices.Contains(mapped, c) })
	if len(alone) == 0 {
		return nil
	}
	if lacks := in.grants.lacks("SELECT", t.database, t.name, alone...); len(lacks) > 0 {
		in.add(SeverityWarning, CodeKeyDenied, t.full(), "no pass can read the table: it is walked along its key, which the login may not read", in.grantSelect(t.full(), lacks))
	}
	return nil
}

// present drops the list where it was asked for nothing.
func present(lacking []string, asked int) []string {
	if asked == 0 {
		return nil
	}
	return lacking
}

// unseenColumns tells columns that do not exist from those that the login may not see.
func (in *inspection) unseenColumns(ctx context.Context, t *catalogTable, columns []string) error {
	var hidden []string
	for _, col := range columns {
		object := t.full() + "." + col
		if i := slices.IndexFunc(t.columns, func(c catalogColumn) bool { return strings.EqualFold(c.name, col) }); i >= 0 {
			in.add(SeverityError, CodeColumnMissing, object, fmt.Sprintf("the column is called %s, and so it is in the log; correct the mapping", t.columns[i].name))
			continue
		}
		err := in.each(ctx, "SELECT "+quoteName(col)+" FROM "+t.quoted()+" WHERE 1 = 0", func([]sql.NullString) {})
		// Who has REFERENCES sees every column that there is: the server's no is then about one that there is not.
		shown := len(in.grants.lacks("REFERENCES", t.database, t.name, col)) == 0
		switch number := pii.MySQLNumber(err); {
		case (number == columnDenied || number == tableDenied) && !shown:
			hidden = append(hidden, col)
		case number == columnDenied || number == tableDenied || number == unknownColumn || err == nil:
			in.add(SeverityError, CodeColumnMissing, object, "the mapped column does not exist; correct the mapping")
		default:
			return fmt.Errorf("reading table %s: %w", t.full(), err)
		}
	}
	in.denied(t.full(), hidden)
	return nil
}

func (in *inspection) columnState(t *catalogTable, c *catalogColumn) {
	object := t.full() + "." + c.name
	reason := refusedTypes[c.dataType]
	switch c.dataType {
	case "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geomcollection", "geometrycollection", "vector":
		reason = "holds nothing that a rule could read"
	}
	if strings.Contains(c.full, "compressed") {
		reason = "is compressed in the log"
	}
	if reason != "" {
		in.add(SeverityError, CodeColumnType, object, fmt.Sprintf("the mapped column is of type %s, which %s; take it out of the mapping, or keep it as text "+
			"in a column beside it", c.full, reason))
		return
	}
	if c.generated && in.mariadb && !in.version.before(11, 0) {
		in.add(SeverityError, CodeColumnGenerated, object, "the mapped column is generated: MariaDB 11 leaves it out of the images of changed and deleted "+
			"rows, whatever binlog_row_image says; map the columns that it is made of")
	}
	if _, ok := transcoders[c.charset]; c.charset != "" && c.charset != "binary" && !ok {
		in.add(SeverityError, CodeColumnCharset, object, fmt.Sprintf("the mapped column is in charset %s, which cannot be turned into UTF-8; convert it to utf8mb4",
			c.charset))
	}
	if c.dataType == "json" && !in.mariadb && strings.Contains(strings.ToUpper(in.settings["binlog_row_value_options"]), "PARTIAL_JSON") {
		in.add(SeverityError, CodeRowValueOptions, object, "the mapped column is JSON, and may be in the log as a difference: capture would stop",
			in.persist("binlog_row_value_options", "''")).byOwner = true
	}
}

// keyStates looks at the columns of the CRM key. For the database two spellings of a text may be one customer, by the
// column's collation; for Lethe they are two.
func (in *inspection) keyStates(t *catalogTable) {
	for _, col := range in.o.Needs[t.full()].SubjectColumns {
		c := t.column(col)
		if c == nil || c.collation == "" || strings.HasSuffix(c.collation, "_bin") || c.charset == "binary" {
			continue
		}
		in.add(SeverityWarning, CodeKeyCollation, t.full()+"."+col, fmt.Sprintf("the key is a text in collation %s, for which texts that differ in case or "+
			"accents are the same customer; for Lethe each spelling is a customer of its own. All tables have to spell a key in the same way; collation "+
			"%s_bin for this column in all of them makes the database see to that", c.collation, c.charset))
	}
}

// spellingsWithin bounds, in milliseconds, the search for a key that is spelled in two ways: it may read a whole table.
const spellingsWithin = 3000

// spellings looks for rows whose key is spelled otherwise than that of the customer whom their foreign key names.
func (in *inspection) spellings(ctx context.Context, t *catalogTable, k *foreignKey) error {
	text := func(col string) bool { // blanks at the end mean nothing in most binary collations either
		c := t.column(col)
		return c != nil && c.collation != "" && c.charset != "binary"
	}
	if !slices.ContainsFunc(k.columns, text) {
		return nil
	}
	var same, other []string
	for i, col := range k.columns {
		same = append(same, fmt.Sprintf("c.%s = p.%s", quoteName(col), quoteName(k.referenced[i])))
		other = append(other, fmt.Sprintf("BINARY c.%s <> BINARY p.%s", quoteName(col), quoteName(k.referenced[i])))
	}
	find := fmt.Sprintf("1 FROM %s c JOIN %s p ON %s WHERE %s LIMIT 1", t.quoted(), quoteTable(k.database+"."+k.table), strings.Join(same, " AND "), strings.Join(other, " OR "))
	query := fmt.Sprintf("SELECT /*+ MAX_EXECUTION_TIME(%d) */ %s", spellingsWithin, find)
	if in.mariadb {
		query = fmt.Sprintf("SET STATEMENT max_statement_time = %d FOR SELECT %s", spellingsWithin/1000, find)
	}
	found := false
	err := in.each(ctx, query, func([]sql.NullString) { found = true })
	switch pii.MySQLNumber(err) {
	case 0:
		if err != nil {
			return fmt.Errorf("comparing the keys of table %s: %w", t.full(), err)
		}
	case databaseDenied, tableDenied, columnDenied, queryTimeout, statementTimeout:
		return nil // not known; the collation was named
	default:
		return fmt.Errorf("comparing the keys of table %s: %w", t.full(), err)
	}
	if found {
		in.add(SeverityError, CodeKeySpellings, t.full(), fmt.Sprintf("some rows spell their customer's key otherwise than %s does (see %s): for Lethe they are another customer's, "+
			"and would outlive an erasure. Make the spellings the same", k.database+"."+k.table, CodeKeyCollation))
	}
	return nil
}

// Errors of the servers that end a statement that took too long.
const (
	queryTimeout     = 3024 // ER_QUERY_TIMEOUT, MySQL
	statementTimeout = 1969 // ER_STATEMENT_TIMEOUT, MariaDB
)

// foreignKey is one of a mapped table.
type foreignKey struct {
	name               string
	columns            []string
	database, table    string // that it refers to
	referenced         []string
	onUpdate, onDelete string
}

// foreignKeys names the cascades that change mapped tables without a word in the log: InnoDB does them by itself, and
// before MySQL 9.6, and on MariaDB, writes nothing.
func (in *inspection) foreignKeys(ctx context.Context, tables map[string]*catalogTable) error {
	for _, name := range in.o.tables() {
		t := tables[name]
		if t == nil {
			continue
		}
		if in.mariadb && in.grants.lacks("SELECT", t.database, t.name) != nil && in.grants.lacks("REFERENCES", t.database, t.name) != nil {
			in.add(SeverityWarning, CodeForeignKeys, name, "the login may not see the table's foreign keys, by whose cascades rows may go without a word in the log",
				"GRANT REFERENCES ON "+t.quoted()+" TO "+in.account)
			if !in.owner {
				continue
			}
		}
		keys, err := in.readForeignKeys(ctx, t)
		if err != nil {
			return fmt.Errorf("reading the foreign keys of table %s: %w", name, err)
		}
		for i := range keys {
			if err := in.foreignKey(ctx, t, &keys[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// readForeignKeys reads those of one table. MariaDB shows the rules to an ordinary login in the table's statement only, and
// that to one which has any privilege on the table as a whole: REFERENCES is the least, as it is of use only to who may make
// tables. MySQL shows the statement to no login that has privileges on columns alone, but the rules in its catalog.
func (in *inspection) readForeignKeys(ctx context.Context, t *catalogTable) (keys []foreignKey, err error) {
	if in.mariadb {
		err = in.each(ctx, "SHOW CREATE TABLE "+t.quoted(), func(row []sql.NullString) {
			keys = parseForeignKeys(row[1].String, t.database)
		})
		return keys, err
	}
	err = in.each(ctx, `SELECT k.constraint_name, k.column_name, k.referenced_table_schema, k.referenced_table_name, k.referenced_column_name,
		r.update_rule, r.delete_rule FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
		ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name
		WHERE k.table_schema = ? AND k.table_name = ? ORDER BY k.constraint_name, k.ordinal_position`, func(row []sql.NullString) {
		if len(keys) == 0 || keys[len(keys)-1].name != row[0].String {
			keys = append(keys, foreignKey{
				name: row[0].String, database: row[2].String, table: row[3].String, onUpdate: row[5].String, onDelete: row[6].String,
			})
		}
		k := &keys[len(keys)-1]
		k.columns, k.referenced = append(k.columns, row[1].String), append(k.referenced, row[4].String)
	}, t.database, t.name)
	return keys, err
}

func (in *inspection) foreignKey(ctx context.Context, t *catalogTable, k *foreignKey) error {
	own := in.ownersKey(t.full(), k)
	if in.mariadb || in.version.before(9, 6) {
		in.cascade(t, k, own)
	}
	if !own {
		return nil
	}
	return in.spellings(ctx, t, k)
}

// cascade says what a foreign key may do unseen; own is set for that of the rows' owner.
func (in *inspection) cascade(t *catalogTable, k *foreignKey, own bool) {
	name, parent := t.full(), k.database+"."+k.table
	needs := in.o.Needs[name]
	reads := slices.ContainsFunc(k.columns, func(c string) bool { return slices.Contains(needs.Columns, c) })
	var what []string
	switch {
	case k.onDelete == "CASCADE" && needs.ReadsDelete && !own:
		what = append(what, "a DELETE there deletes rows here")
	case k.onDelete == "SET NULL" && reads && !own:
		what = append(what, "a DELETE there changes rows here")
	}
	if (k.onUpdate == "CASCADE" || k.onUpdate == "SET NULL") && reads {
		what = append(what, "an UPDATE of its key changes rows here")
	}
	if what == nil {
		return
	}
	in.add(SeverityWarning, CodeCascade, name, fmt.Sprintf("foreign key %s refers to %s, and %s: InnoDB does that without a word in the log. A pass (source.pass) finds rows "+
		"that were changed, and reports a customer whom it does not find, but nobody sees that one row of a customer is gone. Let the application do it by "+
		"statements of its own, with ON DELETE and ON UPDATE RESTRICT%s", k.name, parent, strings.Join(what, ", and "), in.sinceMySQL()))
}

func (in *inspection) sinceMySQL() string {
	if in.mariadb {
		return ""
	}
	return "; MySQL writes it into the log from 9.6 on"
}

// ownersKey reports whether a foreign key is that of the rows' owner: it refers to the CRM key of a table whose DELETE is
// an event of the same person. What goes with the person needs no event of its own.
func (in *inspection) ownersKey(child string, k *foreignKey) bool {
	needs, mapped := in.o.Needs[k.database+"."+k.table]
	if !mapped || !needs.ReadsDelete || len(k.columns) != len(needs.SubjectColumns) {
		return false
	}
	subject := in.o.Needs[child].SubjectColumns
	for i, col := range k.columns {
		at := slices.Index(subject, col)
		if at < 0 || at >= len(needs.SubjectColumns) || needs.SubjectColumns[at] != k.referenced[i] {
			return false
		}
	}
	return true
}

var (
	foreignKeyLine = regexp.MustCompile("(?m)^ *CONSTRAINT (`(?:[^`]|``)+`) FOREIGN KEY \\(([^)]+)\\) REFERENCES ((?:`(?:[^`]|``)+`\\.)?`(?:[^`]|``)+`) \\(([^)]+)\\)(.*)$")
	quotedName     = regexp.MustCompile("`(?:[^`]|``)+`")
	onAction       = regexp.MustCompile("ON (DELETE|UPDATE) (CASCADE|SET NULL|RESTRICT|NO ACTION|SET DEFAULT)")
)

// parseForeignKeys reads the foreign keys of a SHOW CREATE TABLE. A table of the same database is named without it.
func parseForeignKeys(statement, database string) (keys []foreignKey) {
	names := func(list string) (all []string) {
		for _, name := range quotedName.FindAllString(list, -1) {
			all = append(all, unquoteName(name))
		}
		return all
	}
	for _, m := range foreignKeyLine.FindAllStringSubmatch(statement, -1) {
		k := foreignKey{name: unquoteName(m[1]), columns: names(m[2]), database: database, referenced: names(m[4])}
		target := names(m[3])
		if len(target) == 2 {
			k.database = target[0]
		}
		k.table = target[len(target)-1]
		for _, action := range onAction.FindAllStringSubmatch(m[5], -1) {
			if action[1] == "DELETE" {
				k.onDelete = action[2]
			} else {
				k.onUpdate = action[2]
			}
		}
		if len(k.columns) == len(k.referenced) {
			keys = append(keys, k)
		}
	}
	return keys
}

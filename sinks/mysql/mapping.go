package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"

	"lethe/config"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Mapping is a replica's mapping compiled against its catalog: every name checked and quoted, every column with its
// type. It is immutable; a worker makes a new one when the catalog turns out to have changed.
type Mapping struct {
	server   server
	prefix   string // of Lethe's own tables
	person   *table
	key      *column     // of person: what other tables refer to
	crm      []*column   // of person: the CRM key, in the order of source.subject.key
	finds    []findTable // where persons are found by match keys; empty: by the CRM key alone
	by       []*column   // of person: by what statements know the rows of the subjects in them; crm, or key where there are finds
	folds    []foldTable
	suppress []suppressAction
	erase    []eraseStep // in the order that the foreign keys ask for: children first
	audience string
	tables   map[string]*table // by the name that the config uses
	keys     []foreignKey
	// crmErased says that phase 2 takes the CRM key away: the person cannot be found by it any more.
	crmErased bool
	indexed   bool // every look-up that a batch makes in a mapped table has an index
	unique    bool // a CRM key leads to one row at most
	// changesAll says that the last batch changed one row of each of its subjects; see effects.foldTable. The only thing that
	// changes in a Mapping.
	changesAll atomic.Bool

	// Unmapped lists columns that look personal and that nothing erases. While there is one, an erasure is not called
	// verified.
	Unmapped []string
}

// join says how rows of a table are found from a person: by is nil for the person's own table.
type join struct {
	table *table
	by    *column
}

// foldTable is one table with columns that follow from the fold.
type foldTable struct {
	join
	columns []foldColumn
	now     []*column // set to now() wherever one of columns changes
}

// foldColumn is a column whose value is one yes-or-no question to the fold.
type foldColumn struct {
	ledger.Question
	column  *column
	yes, no string // the labels of an ENUM; empty: 1 and 0
}

// sql returns the column's value for an expression that is 1, 0 or NULL.
func (f *foldColumn) sql(answer string) string {
	if f.yes == "" {
		return answer
	}
	return "CASE " + answer + " WHEN 1 THEN " + literal(f.yes) + " WHEN 0 THEN " + literal(f.no) + " END"
}

// open returns the condition that the column says yes. Whatever an owner counts with: only 0 is no.
func (f *foldColumn) open(expression string) string {
	if f.yes == "" {
		return expression + " <> 0"
	}
	return expression + " <> " + literal(f.no)
}

// suppressAction is one action of phase 1: values are set in rows that exist, or one row is inserted.
type suppressAction struct {
	join
	insert bool
	set    []assignment
}

// eraseStep is what phase 2 does in one table.
type eraseStep struct {
	join
	set    []assignment
	delete bool
	unlink bool          // by becomes NULL
	hold   bool          // listed for the receipt, not touched until its date
	from   *column       // of hold: its time runs from here
	keep   config.Period // of hold
}

// compiler gathers findings while it resolves names.
type compiler struct {
	q        querier
	cfg      *config.Replica
	m        *Mapping
	findings []ledger.Finding
}

// compile resolves a mapping against the catalog. Findings of severity error mean that the Mapping must not be used;
// the error is one of the connection.
func compile(ctx context.Context, q querier, cfg *config.Replica) (*Mapping, []ledger.Finding, error) {
	if pool, ok := q.(*sql.DB); ok {
		conn, err := reenter(ctx, pool)
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = conn.Close() }() // goes back to the pool
		q = conn
	}
	c := &compiler{q: q, cfg: cfg, m: &Mapping{prefix: cfg.MySQL.Prefix, tables: map[string]*table{}, audience: cfg.Audience, indexed: true}}
	var err error
	if c.m.server, err = readServer(ctx, q); err != nil {
		return nil, nil, err
	}
	if err := c.resolveTables(ctx); err != nil {
		return nil, nil, err
	}
	if err := c.requireSight(ctx); err != nil {
		return nil, nil, err
	}
	if c.m.person = c.m.tables[cfg.Person.Table]; c.m.person == nil {
		return nil, c.findings, nil
	}
	c.compilePerson()
	if c.m.key == nil {
		return nil, c.findings, nil
	}
	c.compileFolds()
	c.compileSuppress()
	c.compileErase()
	c.compileFind()
	c.checkFound()
	if err := c.compileOrder(ctx); err != nil {
		return nil, nil, err
	}
	if ledger.ErrorOf(cfg.Name, c.findings) == nil {
		if c.m.Unmapped, err = unmappedColumns(ctx, q, c.m); err != nil {
			return nil, nil, err
		}
	}
	return c.m, c.findings, nil
}

// reenter borrows a connection that sees what the login may see now: of the grants on a whole database a session knows those
// of the moment at which it has entered it.
func reenter(ctx context.Context, pool *sql.DB) (*sql.Conn, error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, classify(opCatalog, err)
	}
	name, err := databaseOf(ctx, conn)
	if err == nil {
		_, err = conn.ExecContext(ctx, "USE "+quote(name))
	}
	if err != nil {
		_ = conn.Close() // the error that matters is the statement's
		return nil, classify(opCatalog, err)
	}
	return conn, nil
}

func (c *compiler) report(severity ledger.Severity, code, object, message, fix string) {
	c.findings = append(c.findings, ledger.Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
}

func (c *compiler) fault(code, object, message, fix string) {
	c.report(ledger.SeverityError, code, object, message, fix)
}

func (c *compiler) resolveTables(ctx context.Context) error {
	for _, name := range ledger.TableNames(c.cfg) {
		t, err := loadTable(ctx, c.q, name)
		if errors.Is(err, errNoTable) {
			c.fault(ledger.CodeTableMissing, name,
				"the mapping names a table that this login cannot see: correct the mapping, or grant a privilege on it", "")
			continue
		}
		if err != nil {
			return err
		}
		// "contact" and "crm.contact" are one table: its columns have to meet in one undo.
		for _, known := range c.m.tables {
			if known.same(t) {
				t = known
			}
		}
		c.m.tables[name] = t
	}
	seen := map[*table]bool{}
	for _, name := range ledger.SortedKeys(c.m.tables) {
		t := c.m.tables[name]
		if seen[t] {
			continue
		}
		seen[t] = true
		if !strings.EqualFold(t.engine, "InnoDB") {
			c.fault(CodeEngine, t.label(), "the table's engine is "+t.engine+
				", which takes nothing back: what a failed transaction has written would stay, without receipt", "ALTER TABLE "+t.sql()+" ENGINE=InnoDB;")
		}
		if t.history {
			c.fault(CodeHistory, t.label(), "the table is system-versioned: the server keeps every old version of a row, so nothing in it can be erased",
				"ALTER TABLE "+t.sql()+" DROP SYSTEM VERSIONING;")
		}
	}
	return nil
}

// requireSight refuses a login that sees a part of the mapped databases only: a table that refers to the person and that the
// mapping forgot would not seem to exist, and an erasure would be called verified in spite of it.
func (c *compiler) requireSight(ctx context.Context) error {
	own, err := databaseOf(ctx, c.q)
	if err != nil {
		return err
	}
	g, err := ownGrants(ctx, c.q)
	if err != nil {
		return err
	}
	for _, database := range mappedDatabases(c.cfg, own) {
		if g.sees(database) {
			continue
		}
		a, err := currentAccount(ctx, c.q)
		if err != nil {
			return err
		}
		c.fault(ledger.CodePrivilege, database, invisible(a.label()), a.seeing(database, g.literal)+";")
	}
	return nil
}

// resolve returns a column, or nil with a finding. A control character is in no name that config lets through, and marks
// places in the SQL of assignments.
func (c *compiler) resolve(t *table, name string) *column {
	if col := t.column(name); col != nil && !strings.ContainsFunc(name, unicode.IsControl) {
		return col
	}
	c.fault(ledger.CodeColumnMissing, t.label()+"."+name, "the mapping names a column that does not exist", "")
	return nil
}

// writable returns a column that may be assigned to, or nil with a finding.
func (c *compiler) writable(t *table, name string) *column {
	col := c.resolve(t, name)
	if col != nil && col.fixed {
		c.fault(ledger.CodeColumnFixed, t.label()+"."+name,
			"the server generates this column: map the columns that it is made of", "")
		return nil
	}
	return col
}

func (c *compiler) compilePerson() {
	p := c.m.person
	if key := c.resolve(p, c.cfg.Person.Key); key != nil {
		c.m.key = key
		object := p.label() + "." + key.name
		if !p.isUnique(key.name) {
			c.fault(ledger.CodeKeyNotUnique, object, "person.key must name one person: it has no unique index of its own",
				fmt.Sprintf("ALTER TABLE %s ADD UNIQUE INDEX (%s);", p.sql(), key.sql()))
		}
		if !key.notNull {
			c.fault(ledger.CodeKeyNotUnique, object, "person.key must name every person: it may be NULL", "")
		}
		c.comparable(object, key)
	}
	for i, name := range c.cfg.Person.CRMKey {
		col := c.resolve(p, name)
		if col == nil {
			continue
		}
		c.m.crm = append(c.m.crm, col)
		c.comparable(p.label()+"."+name, col)
		if i == 0 && !p.indexed[col.name] {
			c.m.indexed = false
			columns := make([]string, len(c.cfg.Person.CRMKey))
			for j, n := range c.cfg.Person.CRMKey {
				columns[j] = quote(n)
			}
			c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, p.label()+"."+name,
				"without an index every batch reads the whole table",
				fmt.Sprintf("ALTER TABLE %s ADD INDEX (%s);", p.sql(), strings.Join(columns, ", ")))
		}
	}
	if c.m.by = c.m.crm; c.cfg.Find != nil && c.m.key != nil {
		c.m.by = []*column{c.m.key}
	}
	names := make([]string, len(c.m.by))
	for i, col := range c.m.by {
		names[i] = col.name
	}
	c.m.unique = p.isUnique(names...)
}

// comparable refuses a key column in which two keys could be taken for one.
func (c *compiler) comparable(object string, col *column) {
	if !col.comparesAsKey() {
		c.fault(ledger.CodeColumnType, object, "a key has to be a whole number, a decimal, text or bytes, the column is "+col.typ, "")
	}
}

// joined says how a table of the mapping is reached from the person, by explicit or by erase.tables.TABLE.by.
func (c *compiler) joined(name, by string) (join, bool) {
	t := c.m.tables[name]
	if t == nil {
		return join{}, false
	}
	if by == "" {
		if e := c.cfg.Erase.Tables[name]; e != nil {
			by = e.By
		}
	}
	if by == "" {
		if t == c.m.person {
			return join{table: t}, true
		}
		c.fault(ledger.CodeNoJoin, t.label(),
			"this is not the person's table: say in erase.tables which column refers to person.key (by)", "")
		return join{}, false
	}
	col := c.resolve(t, by)
	if col == nil {
		return join{}, false
	}
	if !t.indexed[col.name] {
		c.m.indexed = false
		c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, t.label()+"."+by,
			"without an index every erasure reads the whole table",
			fmt.Sprintf("ALTER TABLE %s ADD INDEX (%s);", t.sql(), col.sql()))
	}
	c.referring(t, col)
	return join{table: t, by: col}, true
}

// referring refuses a column that the server would compare with person.key only by converting one of the two.
func (c *compiler) referring(t *table, col *column) {
	if !col.refersTo(c.m.key) && c.m.key.comparesAsKey() {
		c.fault(ledger.CodeColumnType, t.label()+"."+col.name,
			"the column is to refer to person.key, but "+col.typ+" and "+c.m.key.typ+" do not compare exactly", "")
	}
}

// compileFolds gathers the columns of consent, objection and restricted by table, so that one statement writes all of a
// table's.
func (c *compiler) compileFolds() {
	for _, a := range c.cfg.Consent {
		c.addFold(a.Set, ledger.Question{
			Purpose: a.Purpose, Channel: a.Channel, FactScope: sinks.ConsentScope(a.Purpose, a.Channel),
		}, ledger.KindPermitted, ledger.KindReconsentDue)
	}
	for _, a := range c.cfg.Objection {
		c.addFold(a.Set, ledger.Question{Scope: a.Scope}, ledger.KindObjected)
	}
	if c.cfg.Restricted != nil {
		c.addFold(c.cfg.Restricted.Set, ledger.Question{}, ledger.KindRestricted)
	}
}

func (c *compiler) addFold(set map[string]map[string]config.Value, proto ledger.Question, kinds ...string) {
	for _, name := range ledger.SortedKeys(set) {
		j, ok := c.joined(name, "")
		if !ok {
			continue
		}
		c.requireUndoKey(j)
		ft := c.foldTable(j)
		for _, columnName := range ledger.SortedKeys(set[name]) {
			col := c.writable(j.table, columnName)
			if col == nil {
				continue
			}
			object := j.table.label() + "." + columnName
			kind := set[name][columnName].Kind
			if kind == ledger.KindNow {
				if c.takesNow(object, col) && !slices.Contains(ft.now, col) {
					ft.now = append(ft.now, col)
				}
				continue
			}
			if !slices.Contains(kinds, kind) {
				c.fault(ledger.CodeUnsupported, object,
					"$"+kind+" has no meaning here: use $"+strings.Join(kinds, ", $")+" or $now", "")
				continue
			}
			f := foldColumn{Question: proto, column: col}
			f.Kind = kind
			if col.category != categoryBool && col.category != categoryNumber {
				c.fault(ledger.CodeColumnType, object,
					"$"+kind+" is yes or no: the column must be a number, or an ENUM of two words for yes and no; it is "+col.typ, "")
				continue
			}
			f.yes, f.no, _ = yesNo(col.labels)
			ft.columns = append(ft.columns, f)
		}
	}
}

// requireUndoKey reports a table whose rows a cancel could not find again: another than the person's, without primary key.
func (c *compiler) requireUndoKey(j join) {
	if j.by != nil && len(j.table.primary) == 0 {
		c.fault(ledger.CodeNoUndoKey, j.table.label(), "a cancel could not find its rows again: the table has no primary key", "")
	}
}

func (c *compiler) foldTable(j join) *foldTable {
	for i := range c.m.folds {
		if c.m.folds[i].table == j.table {
			return &c.m.folds[i]
		}
	}
	c.m.folds = append(c.m.folds, foldTable{join: j})
	return &c.m.folds[len(c.m.folds)-1]
}

func (c *compiler) compileSuppress() {
	for i, a := range c.cfg.Suppress {
		if a.Insert != nil {
			c.compileInsert(a.Insert)
			continue
		}
		for _, name := range ledger.SortedKeys(a.Set) {
			j, ok := c.joined(name, "")
			if !ok {
				continue
			}
			c.requireUndoKey(j)
			action := suppressAction{join: j}
			for _, columnName := range ledger.SortedKeys(a.Set[name]) {
				v := a.Set[name][columnName]
				object := j.table.label() + "." + columnName
				if v.Kind != ledger.KindNull && v.Kind != ledger.KindConst && v.Kind != ledger.KindNow {
					c.fault(ledger.CodeUnsupported, object,
						fmt.Sprintf("suppress[%d] is undone by a cancel: only null, a constant or $now can be set", i), "")
					continue
				}
				as, ok := c.assign(j.table, columnName, v)
				if !ok {
					continue
				}
				if as.column.keepsPerson() {
					c.fault(ledger.CodeUnsupported, object, fmt.Sprintf("suppress[%d] keeps the prior value until a cancel is too late, "+
						"and may keep flags and codes only: what the column holds looks personal, set it in erase.tables", i), "")
				}
				action.set = append(action.set, as)
			}
			c.m.suppress = append(c.m.suppress, action)
		}
	}
}

func (c *compiler) compileInsert(in *config.Insert) {
	t := c.m.tables[in.Table]
	if t == nil {
		return
	}
	action := suppressAction{join: join{table: t}, insert: true}
	if len(t.primary) == 0 {
		c.fault(ledger.CodeNoUndoKey, t.label(), "a cancel could not find the inserted row again: the table has no primary key", "")
	}
	named := map[*column]bool{}
	for _, columnName := range ledger.SortedKeys(in.Values) {
		v := in.Values[columnName]
		if v.Kind == ledger.KindTruncate || v.Kind == ledger.KindGeneralise {
			c.fault(ledger.CodeUnsupported, t.label()+"."+columnName, "a new row has no value to shorten", "")
			continue
		}
		as, ok := c.assign(t, columnName, v)
		if !ok {
			continue
		}
		named[as.column] = true
		if v.Kind == ledger.KindKey {
			action.by = as.column
			c.referring(t, as.column)
		}
		action.set = append(action.set, as)
	}
	for _, col := range t.columns {
		if !named[col] && !col.filled && !col.fixed {
			c.fault(ledger.CodeNotNull, t.label()+"."+col.name, "the inserted row gives it no value, and it has no default: add it to values", "")
		}
	}
	if action.by == nil {
		c.fault(ledger.CodeNoKey, t.label(), "no column of the inserted row is $key: it would speak of nobody", "")
		return
	}
	c.m.indexed = c.m.indexed && t.indexed[action.by.name]
	c.m.suppress = append(c.m.suppress, action)
}

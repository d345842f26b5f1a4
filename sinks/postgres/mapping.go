package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lethe/config"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Mapping is a replica's mapping compiled against its catalog: every name checked and quoted, every column with its
// type. It is immutable; a worker makes a new one when the catalog turns out to have changed.
type Mapping struct {
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
	column   *column
	asNumber bool // 1 and 0 instead of true and false
}

// suppressAction is one action of phase 1: values are set in rows that exist, or one row is inserted.
type suppressAction struct {
	join
	insert bool
	set    []assignment
}

// assignment is a column and the SQL of its new value. In sql, {row} stands for the alias of the row that is written,
// {key} for the person's key, and $1… for args.
type assignment struct {
	column *column
	kind   string
	sql    string
	args   []any
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
	c := &compiler{q: q, cfg: cfg, m: &Mapping{tables: map[string]*table{}, audience: cfg.Audience, indexed: true}}
	if err := c.resolveTables(ctx); err != nil {
		return nil, nil, err
	}
	if c.m.person = c.m.tables[cfg.Person.Table]; c.m.person == nil {
		return nil, c.findings, nil
	}
	c.compilePerson()
	c.compileFolds()
	c.compileSuppress()
	c.compileErase()
	c.compileFind()
	c.checkFound()
	if err := c.compileOrder(ctx); err != nil {
		return nil, nil, err
	}
	return c.m, c.findings, nil
}

func (c *compiler) report(severity ledger.Severity, code, object, message, fix string) {
	c.findings = append(c.findings, ledger.Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
}

func (c *compiler) resolveTables(ctx context.Context) error {
	for _, name := range ledger.TableNames(c.cfg) {
		t, err := loadTable(ctx, c.q, name)
		if errors.Is(err, errNoTable) {
			c.report(ledger.SeverityError, ledger.CodeTableMissing, name,
				"the mapping names a table that this login cannot see: correct the mapping, or grant USAGE on its schema", "")
			continue
		}
		if err != nil {
			return err
		}
		// "contact" and "public.contact" are one table: its columns have to meet in one undo.
		for _, known := range c.m.tables {
			if known.oid == t.oid {
				t = known
			}
		}
		c.m.tables[name] = t
	}
	return nil
}

// resolve returns a column, or nil with a finding.
func (c *compiler) resolve(t *table, name string) *column {
	if col := t.column(name); col != nil {
		return col
	}
	c.report(ledger.SeverityError, ledger.CodeColumnMissing, t.label()+"."+name, "the mapping names a column that does not exist", "")
	return nil
}

// writable returns a column that may be assigned to, or nil with a finding.
func (c *compiler) writable(t *table, name string) *column {
	col := c.resolve(t, name)
	if col != nil && col.fixed {
		c.report(ledger.SeverityError, ledger.CodeColumnFixed, t.label()+"."+name,
			"the server generates this column: map the columns that it is made of", "")
		return nil
	}
	return col
}

func (c *compiler) compilePerson() {
	p := c.m.person
	c.m.key = c.resolve(p, c.cfg.Person.Key)
	if c.m.key != nil && !p.isUnique(c.m.key.name) {
		c.report(ledger.SeverityError, ledger.CodeKeyNotUnique, p.label()+"."+c.m.key.name,
			"person.key must name one person: it has no unique index of its own",
			fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s);", p.sql(), c.m.key.sql()))
	}
	if c.m.key != nil && !c.m.key.notNull {
		c.report(ledger.SeverityError, ledger.CodeKeyNotUnique, p.label()+"."+c.m.key.name, "person.key must name every person: it may be NULL",
			fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL;", p.sql(), c.m.key.sql()))
	}
	for i, name := range c.cfg.Person.CRMKey {
		col := c.resolve(p, name)
		if col == nil {
			continue
		}
		c.m.crm = append(c.m.crm, col)
		if i == 0 && !p.indexed[name] {
			c.m.indexed = false
			columns := make([]string, len(c.cfg.Person.CRMKey))
			for j, n := range c.cfg.Person.CRMKey {
				columns[j] = quote(n)
			}
			c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, p.label()+"."+name,
				"without an index every batch reads the whole table",
				fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s);", p.sql(), strings.Join(columns, ", ")))
		}
	}
	if c.m.by = c.m.crm; c.cfg.Find != nil && c.m.key != nil {
		c.m.by = []*column{c.m.key}
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
		if t.oid == c.m.person.oid {
			return join{table: t}, true
		}
		c.report(ledger.SeverityError, ledger.CodeNoJoin, t.label(),
			"this is not the person's table: say in erase.tables which column refers to person.key (by)", "")
		return join{}, false
	}
	col := c.resolve(t, by)
	if col != nil && !t.indexed[by] {
		c.m.indexed = false
		c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, t.label()+"."+by,
			"without an index every erasure reads the whole table",
			fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s);", t.sql(), col.sql()))
	}
	return join{table: t, by: col}, col != nil
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

func (c *compiler) addFold(set map[string]map[string]config.Value, question ledger.Question, kinds ...string) {
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
				if !slices.Contains(ft.now, col) {
					ft.now = append(ft.now, col)
				}
				continue
			}
			if !slices.Contains(kinds, kind) {
				c.report(ledger.SeverityError, ledger.CodeUnsupported, object,
					"$"+kind+" has no meaning here: use $"+strings.Join(kinds, ", $")+" or $now", "")
				continue
			}
			f := foldColumn{Question: question, column: col}
			f.Kind = kind
			switch col.category {
			case 'B':
			case 'N':
				f.asNumber = true
			default:
				c.report(ledger.SeverityError, ledger.CodeColumnType, object,
					"$"+kind+" is yes or no: the column must be boolean or a number, it is "+col.base, "")
				continue
			}
			ft.columns = append(ft.columns, f)
		}
	}
}

// requireUndoKey reports a table whose rows a cancel could not find again: another than the person's, without primary key.
func (c *compiler) requireUndoKey(j join) {
	if j.by != nil && len(j.table.primary) == 0 {
		c.report(ledger.SeverityError, ledger.CodeNoUndoKey, j.table.label(), "a cancel could not find its rows again: the table has no primary key", "")
	}
}

func (c *compiler) foldTable(j join) *foldTable {
	for i := range c.m.folds {
		if c.m.folds[i].table.oid == j.table.oid {
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
					c.report(ledger.SeverityError, ledger.CodeUnsupported, object,
						fmt.Sprintf("suppress[%d] is undone by a cancel: only null, a constant or $now can be set", i), "")
					continue
				}
				as, ok := c.assign(j.table, columnName, v)
				if !ok {
					continue
				}
				if as.column.keepsPerson() {
					c.report(ledger.SeverityError, ledger.CodeUnsupported, object, fmt.Sprintf("suppress[%d] keeps the prior value until a cancel is too late, "+
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
		c.report(ledger.SeverityError, ledger.CodeNoUndoKey, t.label(), "a cancel could not find the inserted row again: the table has no primary key", "")
	}
	keyed := false
	for _, columnName := range ledger.SortedKeys(in.Values) {
		v := in.Values[columnName]
		if v.Kind == ledger.KindTruncate || v.Kind == ledger.KindGeneralise {
			c.report(ledger.SeverityError, ledger.CodeUnsupported, t.label()+"."+columnName, "a new row has no value to shorten", "")
			continue
		}
		keyed = keyed || v.Kind == ledger.KindKey
		if v.Kind == ledger.KindKey {
			action.by = t.column(columnName)
		}
		if as, ok := c.assign(t, columnName, v); ok {
			action.set = append(action.set, as)
		}
	}
	if !keyed {
		c.report(ledger.SeverityError, ledger.CodeNoKey, t.label(), "no column of the inserted row is $key: it would speak of nobody", "")
	}
	c.m.indexed = c.m.indexed && action.by != nil && t.indexed[action.by.name]
	c.m.suppress = append(c.m.suppress, action)
}

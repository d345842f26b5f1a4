package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// privileges are what the run role needs on one mapped table, and nothing more.
type privileges struct {
	table  *table
	read   map[string]bool
	update map[string]bool
	insert map[string]bool
	delete bool
	locks  bool // SELECT … FOR UPDATE, which wants UPDATE on some column
}

func needsOf(all map[uint32]*privileges, t *table) *privileges {
	p := all[t.oid]
	if p == nil {
		p = &privileges{table: t, read: map[string]bool{}, update: map[string]bool{}, insert: map[string]bool{}}
		all[t.oid] = p
	}
	return p
}

// privileges says what the statements of this package need in a mode, by table.
func (m *Mapping) privileges(mode string) map[uint32]*privileges {
	all := map[uint32]*privileges{}
	person := needsOf(all, m.person)
	person.read[m.key.name] = true
	for _, c := range m.crm {
		person.read[c.name] = true
	}
	person.locks = mode != ledger.ModeObserve
	writes := mode != ledger.ModeObserve
	for i := range m.folds {
		m.foldPrivileges(all, &m.folds[i], writes)
	}
	for i := range m.suppress {
		m.suppressPrivileges(all, &m.suppress[i], writes)
	}
	for i := range m.erase {
		m.erasePrivileges(all, &m.erase[i], mode == ledger.ModeErase)
	}
	for i := range m.finds {
		m.findPrivileges(all, &m.finds[i], writes)
	}
	return all
}

// findPrivileges are for reading by what a person is found; rows are locked while it is decided whose they are.
func (m *Mapping) findPrivileges(all map[uint32]*privileges, ft *findTable, writes bool) {
	p := ft.needs(all)
	for _, c := range ft.key {
		p.read[c.name] = true
	}
	for _, c := range ft.columns {
		p.read[c.name] = true
	}
	if ft.changed != nil {
		p.read[ft.changed.name] = true
	}
	p.locks = p.locks || writes
}

func (j join) needs(all map[uint32]*privileges) *privileges {
	p := needsOf(all, j.table)
	if j.by != nil {
		p.read[j.by.name] = true
	}
	return p
}

func (p *privileges) readKey() {
	for _, name := range p.table.primary { // for the undo of a cancel
		p.read[name] = true
	}
}

func (m *Mapping) foldPrivileges(all map[uint32]*privileges, ft *foldTable, writes bool) {
	p := ft.needs(all)
	p.readKey()
	for _, c := range ft.columns {
		p.read[c.column.name] = true
		p.update[c.column.name] = p.update[c.column.name] || writes
	}
	for _, c := range ft.now {
		p.update[c.name] = p.update[c.name] || writes
	}
}

func (m *Mapping) suppressPrivileges(all map[uint32]*privileges, a *suppressAction, writes bool) {
	p := a.needs(all)
	p.readKey()
	for _, as := range a.set {
		switch {
		case !a.insert:
			p.read[as.column.name] = true
			p.update[as.column.name] = p.update[as.column.name] || writes
		case writes:
			p.insert[as.column.name] = true
			if as.kind == ledger.KindConst || as.kind == ledger.KindKey || as.kind == ledger.KindNull {
				p.read[as.column.name] = true
			}
		}
	}
	p.delete = p.delete || a.insert && writes // a cancel takes the row away
}

func (m *Mapping) erasePrivileges(all map[uint32]*privileges, step *eraseStep, writes bool) {
	p := step.needs(all)
	p.delete = p.delete || step.delete && writes
	if step.from != nil {
		p.read[step.from.name] = true
	}
	if step.unlink && writes {
		p.update[step.by.name] = true
	}
	for _, as := range step.set {
		p.read[as.column.name] = true
		p.update[as.column.name] = p.update[as.column.name] || writes
	}
}

// grants compares what a role may do with what is needed, one finding a table and privilege. readOnly looks at SELECT
// alone.
func (c *checker) grants(ctx context.Context, needs map[uint32]*privileges, role string, readOnly bool) error {
	var order []*privileges
	for _, p := range needs {
		order = append(order, p)
	}
	slices.SortFunc(order, func(a, b *privileges) int { return strings.Compare(a.table.label(), b.table.label()) })
	for _, p := range order {
		if err := c.grantColumns(ctx, p, role, "SELECT", p.read); err != nil {
			return err
		}
		if readOnly {
			continue
		}
		if err := c.grantWrites(ctx, p, role); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) grantWrites(ctx context.Context, p *privileges, role string) error {
	if p.locks && !hasTrue(p.update) {
		var any bool
		err := c.conn.QueryRow(ctx, `SELECT has_any_column_privilege($1, $2::oid, 'UPDATE')`, role, p.table.oid).Scan(&any)
		if err != nil {
			return classify("reading privileges", err)
		}
		if !any {
			p.update[slices.Min(ledger.SortedKeys(p.read))] = true
		}
	}
	if err := c.grantColumns(ctx, p, role, "UPDATE", p.update); err != nil {
		return err
	}
	if err := c.grantColumns(ctx, p, role, "INSERT", p.insert); err != nil {
		return err
	}
	if len(p.insert) > 0 {
		if err := c.sequences(ctx, p, role); err != nil {
			return err
		}
	}
	if !p.delete {
		return nil
	}
	var may bool
	if err := c.conn.QueryRow(ctx, `SELECT has_table_privilege($1, $2::oid, 'DELETE')`, role, p.table.oid).Scan(&may); err != nil {
		return classify("reading privileges", err)
	}
	if !may {
		c.add(ledger.SeverityError, ledger.CodePrivilege, p.table.label(), fmt.Sprintf("login %s may not delete from the table", role),
			"GRANT DELETE ON "+p.table.sql()+" TO "+quote(role)+";")
	}
	return nil
}

func hasTrue(set map[string]bool) bool {
	for _, v := range set {
		if v {
			return true
		}
	}
	return false
}

func (c *checker) grantColumns(ctx context.Context, p *privileges, role, privilege string, columns map[string]bool) error {
	var wanted []string
	for _, name := range ledger.SortedKeys(columns) {
		if columns[name] {
			wanted = append(wanted, name)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	rows, err := c.conn.Query(ctx, `SELECT x FROM unnest($3::text[]) AS x WHERE NOT has_column_privilege($1, $2::oid, x, $4) ORDER BY 1`,
		role, p.table.oid, wanted, privilege)
	if err != nil {
		return classify("reading privileges", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return classify("reading privileges", err)
	}
	if len(missing) == 0 {
		return nil
	}
	quoted := make([]string, len(missing))
	for i, name := range missing {
		quoted[i] = quote(name)
	}
	c.add(ledger.SeverityError, ledger.CodePrivilege, p.table.label(), fmt.Sprintf("login %s lacks %s on %s", role, privilege, strings.Join(missing, ", ")),
		fmt.Sprintf("GRANT %s (%s) ON %s TO %s;", privilege, strings.Join(quoted, ", "), p.table.sql(), quote(role)))
	return nil
}

// sequences looks at the defaults of columns that an insert leaves to the server: a serial column draws from a sequence.
func (c *checker) sequences(ctx context.Context, p *privileges, role string) error {
	rows, err := c.conn.Query(ctx, `
		SELECT n.nspname::text, s.relname::text FROM pg_catalog.pg_depend d
		JOIN pg_catalog.pg_class s ON s.oid = d.objid JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
		JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'a' AND d.refobjid = $2 AND a.attname <> ALL ($3)
			AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege($1, s.oid, 'USAGE') ELSE false END`, role, p.table.oid, ledger.SortedKeys(p.insert))
	if err != nil {
		return classify("reading privileges on sequences", err)
	}
	var name [2]string
	_, err = pgx.ForEachRow(rows, []any{&name[0], &name[1]}, func() error {
		sequence := pgx.Identifier(name[:]).Sanitize()
		c.add(ledger.SeverityError, ledger.CodePrivilege, name[0]+"."+name[1], fmt.Sprintf("login %s may not draw the number of a new row", role),
			"GRANT USAGE ON SEQUENCE "+sequence+" TO "+quote(role)+";")
		return nil
	})
	return classify("reading privileges on sequences", err)
}

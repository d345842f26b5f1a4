package postgres

import (
	"fmt"
	"slices"
	"strconv"

	"lethe/capture"
)

// TableNeeds says what the mapping reads of one table.
type TableNeeds struct {
	// Columns are all the columns that rules read, those below included.
	Columns []string
	// OldColumns are those read as old.x, which the replica identity has to carry.
	OldColumns []string
	// SubjectColumns hold the CRM key.
	SubjectColumns []string
	// ReadsDelete is set where a DELETE means an event: then the replica identity has to carry SubjectColumns.
	ReadsDelete bool
	// AllowUnseenDeletes accepts that the identity does not: a DELETE arrives without the subject's columns then. Check
	// reports it as a warning instead of an error.
	AllowUnseenDeletes bool
	// ReadsRows is set where a row as it is means something: passes read the table.
	ReadsRows bool
	// Mapped are columns that the mapping names besides: they need not be in the log, but a name that does not exist is a
	// slip that Check tells.
	Mapped []string
	// Optional is set for a table that not every installation has.
	Optional bool
}

// oldColumns returns the columns that the old image has to carry.
func (n TableNeeds) oldColumns() []string {
	cols := slices.Clone(n.OldColumns)
	if n.ReadsDelete && !n.AllowUnseenDeletes {
		cols = append(cols, n.SubjectColumns...)
	}
	slices.Sort(cols)
	return slices.Compact(cols)
}

// relation is what a connection knows of a relation id.
type relation struct {
	table *capture.Table // nil: not mapped
	// unfit is set where the shape lacks what the mapping reads. It is raised by the first change of the relation, not by
	// its description: a transaction that is only re-read on the way to the checkpoint may have an older shape.
	unfit error
}

// relations is the cache of one connection. A re-used id is described again before its first change.
type relations struct {
	needs map[string]TableNeeds
	byID  map[uint32]*relation
	types map[uint32]string
	// tables keeps the shapes handed out last, so that a Relation message that changes nothing gives the same pointer.
	tables map[string]*capture.Table

	lastID uint32
	last   *relation
}

func newRelations(needs map[string]TableNeeds) relations {
	return relations{
		needs: needs, byID: map[uint32]*relation{}, types: map[uint32]string{}, tables: map[string]*capture.Table{},
	}
}

func (r *relations) find(id uint32) *relation {
	if r.last != nil && r.lastID == id {
		return r.last
	}
	rel := r.byID[id]
	r.lastID, r.last = id, rel
	return rel
}

func (r *relations) readRelation(b []byte) error {
	c := cursor{b: b}
	id := c.uint32()
	schema, name := string(c.cstring()), string(c.cstring())
	if schema == "" {
		schema = "pg_catalog"
	}
	identity := c.byte()
	n := int(c.uint16())
	t := &capture.Table{Name: schema + "." + name, OldRow: capture.OldRowNothing}
	for range n {
		flags := c.byte()
		col := capture.Column{Name: string(c.cstring()), Key: flags&1 != 0}
		col.Type = r.typeName(c.uint32())
		c.uint32() // type modifier
		if c.short {
			return errShort
		}
		t.Columns = append(t.Columns, col)
		if col.Key && identity != 'f' {
			t.OldRow = capture.OldRowKey
		}
	}
	if err := c.end(); err != nil {
		return err
	}
	switch identity {
	case 'f':
		t.OldRow = capture.OldRowFull
	case 'd', 'i', 'n':
	default:
		return fmt.Errorf("unknown replica identity 0x%02x", identity)
	}
	r.learn(id, t)
	return nil
}

// learn puts a described table into the cache.
func (r *relations) learn(id uint32, t *capture.Table) {
	r.last = nil
	needs, mapped := r.needs[t.Name]
	if !mapped {
		r.byID[id] = &relation{}
		return
	}
	if known := r.tables[t.Name]; known != nil && sameShape(known, t) {
		t = known
	} else {
		r.tables[t.Name] = t
	}
	r.byID[id] = &relation{table: t, unfit: unfit(t, needs)}
}

func sameShape(a, b *capture.Table) bool {
	return a.OldRow == b.OldRow && slices.Equal(a.Columns, b.Columns)
}

// unfit compares a shape with what the mapping reads. It returns nil, a *ColumnError or an *IdentityError.
func unfit(t *capture.Table, needs TableNeeds) error {
	for _, col := range needs.Columns {
		if t.Index(col) < 0 {
			return &ColumnError{Table: t.Name, Column: col}
		}
	}
	var missing []string
	for _, col := range needs.oldColumns() {
		if i := t.Index(col); i < 0 || t.OldRow == capture.OldRowNothing || !t.Columns[i].Key {
			missing = append(missing, col)
		}
	}
	if missing != nil {
		return &IdentityError{Table: t.Name, Columns: missing}
	}
	return nil
}

func (r *relations) readType(b []byte) error {
	c := cursor{b: b}
	id := c.uint32()
	schema, name := string(c.cstring()), string(c.cstring())
	if err := c.end(); err != nil {
		return err
	}
	// A domain is described by the name of its base type, and pg_catalog by no name.
	if schema != "" {
		name = schema + "." + name
	}
	r.types[id] = name
	return nil
}

func (r *relations) typeName(oid uint32) string {
	if name := builtinTypes[oid]; name != "" {
		return name
	}
	if name := r.types[oid]; name != "" {
		return name
	}
	return "oid:" + strconv.FormatUint(uint64(oid), 10)
}

// builtinTypes names the types that the server does not describe in Type messages (pg_type.dat).
var builtinTypes = map[uint32]string{
	16: "bool", 17: "bytea", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 24: "regproc", 25: "text",
	26: "oid", 27: "tid", 28: "xid", 114: "json", 142: "xml", 600: "point", 601: "lseg", 602: "path", 603: "box",
	604: "polygon", 628: "line", 650: "cidr", 700: "float4", 701: "float8", 718: "circle", 774: "macaddr8", 790: "money",
	829: "macaddr", 869: "inet", 1042: "bpchar", 1043: "varchar", 1082: "date", 1083: "time", 1114: "timestamp",
	1184: "timestamptz", 1186: "interval", 1266: "timetz", 1560: "bit", 1562: "varbit", 1700: "numeric", 2205: "regclass",
	2950: "uuid", 3220: "pg_lsn", 3614: "tsvector", 3802: "jsonb", 3904: "int4range", 3906: "numrange", 3908: "tsrange",
	3910: "tstzrange", 3912: "daterange", 3926: "int8range", 4072: "jsonpath", 5069: "xid8",
	199: "_json", 1000: "_bool", 1001: "_bytea", 1005: "_int2", 1007: "_int4", 1009: "_text", 1014: "_bpchar",
	1015: "_varchar", 1016: "_int8", 1021: "_float4", 1022: "_float8", 1041: "_inet", 1115: "_timestamp", 1182: "_date",
	1185: "_timestamptz", 1231: "_numeric", 2951: "_uuid", 3807: "_jsonb",
}

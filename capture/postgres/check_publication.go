package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// publicationOps are the operations that have to be published; the names are PostgreSQL's.
var publicationOps = []string{"insert", "update", "delete", "truncate"}

func (in *inspection) publicationState() {
	pub := in.pub
	name := quoteIdentifier(in.o.Publication)
	switch {
	case pub == nil:
		in.add(SeverityError, CodePublication, in.o.Publication, "the publication does not exist", in.createPublication())
		return
	case pub.allTables:
		in.add(SeverityError, CodePublicationAll, in.o.Publication,
			"the publication is FOR ALL TABLES: every personal column of the database would leave it",
			"BEGIN", "DROP PUBLICATION "+name, in.createPublication(), "COMMIT")
		return
	}
	var missing []string
	for _, op := range publicationOps {
		if !pub.ops[op] {
			missing = append(missing, op)
		}
	}
	if missing != nil {
		in.add(SeverityError, CodePublicationOp, in.o.Publication, "the publication leaves out "+strings.Join(missing, ", "),
			"ALTER PUBLICATION "+name+" SET (publish = '"+strings.Join(publicationOps, ", ")+"')")
	}
	in.viaRoot(name)
	for _, table := range slices.Sorted(maps.Keys(in.tables)) {
		in.publishedState(name, in.tables[table])
	}
	for _, table := range slices.Sorted(maps.Keys(pub.tables)) {
		if _, mapped := in.o.Needs[table]; !mapped && !in.partOfMapped(table) {
			in.add(SeverityWarning, CodePublicationExtra, table, "the table is published and not mapped: its changes are sent for nothing",
				"ALTER PUBLICATION "+name+" DROP TABLE "+quoteTable(table)).byOwner = true
		}
	}
}

func (in *inspection) viaRoot(publication string) {
	if in.pub.viaRoot {
		return
	}
	for _, table := range slices.Sorted(maps.Keys(in.tables)) {
		if in.tables[table].kind == "p" {
			in.add(SeverityError, CodePublicationRoot, in.o.Publication,
				fmt.Sprintf("table %s is partitioned, and the publication sends its changes under the names of the partitions", table),
				"ALTER PUBLICATION "+publication+" SET (publish_via_partition_root = true)")
			return
		}
	}
}

// partOfMapped reports whether table is a partition of a mapped table.
func (in *inspection) partOfMapped(table string) bool {
	for _, t := range in.tables {
		if slices.ContainsFunc(t.leaves, func(leaf *catalogTable) bool { return leaf.full() == table }) {
			return true
		}
	}
	return false
}

// publishedState looks at one mapped table in the publication.
func (in *inspection) publishedState(publication string, t *catalogTable) {
	p, ok := in.pub.tables[t.full()]
	if !ok {
		if t.kind == "p" && !in.pub.viaRoot && slices.ContainsFunc(t.leaves, func(leaf *catalogTable) bool {
			_, published := in.pub.tables[leaf.full()]
			return published
		}) {
			return // published under its partitions' names: said already
		}
		in.add(SeverityError, CodePublicationTable, t.full(), "the mapped table is not in the publication",
			"ALTER PUBLICATION "+publication+" ADD TABLE "+in.publicationEntry(t))
		return
	}
	// In one transaction: a change that falls between the two would be lost.
	again := []string{
		"BEGIN", "ALTER PUBLICATION " + publication + " DROP TABLE " + t.quoted(),
		"ALTER PUBLICATION " + publication + " ADD TABLE " + in.publicationEntry(t), "COMMIT",
	}
	wanted := slices.Concat(presentColumns(t, in.o.Needs[t.full()].Columns), in.planned[t.full()].columns)
	switch lacking := missingFrom(p.columns, wanted); {
	case p.filter != "":
		in.add(SeverityError, CodePublicationFilter, t.full(), "the publication has a row filter for the table: changes are left out", again...)
	case p.list && t.identity == "f":
		in.add(SeverityError, CodePublicationList, t.full(),
			"the publication has a column list for a table with REPLICA IDENTITY FULL: the application's own UPDATEs and DELETEs fail", again...)
	case p.list && missingFrom(p.columns, t.identityColumns()) != nil:
		in.add(SeverityError, CodePublicationList, t.full(), "the publication's column list does not cover the replica identity ("+
			strings.Join(missingFrom(p.columns, t.identityColumns()), ", ")+"): the application's own UPDATEs and DELETEs fail", again...)
	case p.list && in.planned[t.full()].full:
		in.add(SeverityError, CodePublicationList, t.full(),
			"the publication's column list has to go before the table gets REPLICA IDENTITY FULL", again...)
	case p.list && lacking != nil:
		in.add(SeverityError, CodePublicationColumn, t.full(), "the publication's column list lacks "+strings.Join(lacking, ", "), again...)
	}
}

// createPublication is the statement that makes the publication as it should be.
func (in *inspection) createPublication() string {
	var entries []string
	for _, table := range slices.Sorted(maps.Keys(in.tables)) {
		entries = append(entries, in.publicationEntry(in.tables[table]))
	}
	sql := "CREATE PUBLICATION " + quoteIdentifier(in.o.Publication)
	if entries != nil {
		sql += " FOR TABLE " + strings.Join(entries, ", ")
	}
	return sql + " WITH (publish = '" + strings.Join(publicationOps, ", ") + "', publish_via_partition_root = true)"
}

// publicationEntry names the table with the columns that rules read and those of its replica identity, so that no other
// leaves the database. With identity FULL a list would make the application's own UPDATEs fail; a partitioned table gets
// none, because each partition may have another identity.
func (in *inspection) publicationEntry(t *catalogTable) string {
	plan := in.planned[t.full()]
	if plan.full || t.kind == "p" {
		return t.quoted()
	}
	var list []string
	for _, col := range t.columnNames() {
		if slices.Contains(in.o.Needs[t.full()].Columns, col) || slices.Contains(plan.columns, col) ||
			slices.Contains(t.identityColumns(), col) {
			list = append(list, col)
		}
	}
	if len(list) == len(t.columns) || len(list) == 0 {
		return t.quoted()
	}
	return t.quoted() + " (" + quotedList(list) + ")"
}

// presentColumns leaves out the columns that do not exist, which has been said already.
func presentColumns(t *catalogTable, columns []string) []string {
	names := t.columnNames()
	return slices.DeleteFunc(slices.Clone(columns), func(col string) bool { return !slices.Contains(names, col) })
}

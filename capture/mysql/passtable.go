package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"lethe/capture"
	"lethe/internal/pii"
)

// PassTable implements capture.Snapshotter.
func (s *Source) PassTable(ctx context.Context, table string) (capture.PassTable, error) {
	told := capture.PassTable{Rows: -1}
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		if err := s.readable(ctx, conn, table); err != nil {
			return err
		}
		w, err := s.makeWalk(ctx, conn, table)
		if err != nil {
			return err
		}
		database, name, _ := strings.Cut(table, ".")
		err = eachRow(ctx, conn, estimate, func(row []sql.NullString) {
			if row[0].Valid {
				_, err = fmt.Sscan(row[0].String, &told.Rows)
			}
		}, database, name)
		if err != nil {
			return fmt.Errorf("estimating the rows of table %s: %w", table, err)
		}
		told.Key, told.Walk = w.keyNames(), w.text
		s.mu.Lock()
		defer s.mu.Unlock()
		s.walks[table] = &toldWalk{walk: w, told: w.text}
		return nil
	})
	return told, err
}

// estimate asks for the server's estimate. MySQL would give one of up to a day ago.
const estimate = `SELECT /*+ SET_VAR(information_schema_stats_expiry = 0) */ table_rows FROM information_schema.tables WHERE table_schema = ? AND table_name = ?`

// toldWalk is the walk of a table as it is now, and the Walk that PassTable told last.
type toldWalk struct {
	walk *walk
	told string
	// limit is the most rows that fit into a chunk's memory; 0: not met yet.
	limit int
}

// walkOf returns the walk of a table, making it where PassTable was not asked.
func (s *Source) walkOf(ctx context.Context, table string) (*toldWalk, error) {
	s.mu.Lock()
	known := s.walks[table]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if _, err := s.PassTable(ctx, table); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.walks[table], nil
}

// remake makes the walk of a table that was changed. It returns capture.ErrTableChanged where that leads another way than
// PassTable told.
func (s *Source) remake(ctx context.Context, conn *sql.Conn, table string) error {
	w, err := s.makeWalk(ctx, conn, table)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.walks[table]
	known.walk = w
	s.walks[table] = &known
	if w.text != known.told {
		return changed(table)
	}
	return nil
}

func changed(table string) error {
	return fmt.Errorf("reading table %s: %w", table, capture.ErrTableChanged)
}

// makeWalk reads how a table is made. A shape that is known keeps its *capture.Table.
func (s *Source) makeWalk(ctx context.Context, conn *sql.Conn, table string) (*walk, error) {
	refuse := func(cause, hint string) error {
		return &capture.TableRefusedError{Table: table, Cause: cause, Hint: hint}
	}
	needs, mapped := s.o.Needs[table]
	database, name, err := splitTable(table)
	if err != nil || !mapped {
		return nil, refuse(capture.RefusedMissing, "it is not among the mapped tables; write it as database.table, as in the mapping")
	}
	in := &inspection{o: s.o, conn: conn}
	made, err := in.definition(ctx, database, name)
	if err != nil {
		return nil, refusedTable(table, err)
	}
	t, err := in.readTable(ctx, database, name)
	switch {
	case err != nil:
		return nil, refusedTable(table, err)
	case t == nil:
		return nil, refuse(capture.RefusedMissing, "the source has no such table, or Lethe's login does not see it; `lethe check` tells which")
	case t.full() != table:
		return nil, refuse(capture.RefusedMissing, "it is called "+t.full()+": correct the mapping")
	case !strings.HasSuffix(t.kind, "BASE TABLE"):
		return nil, refuse(capture.RefusedKind, "it is a view or the like: map the tables below it")
	}
	indexes, err := in.readIndexes(ctx, t)
	if err != nil {
		return nil, refusedTable(table, err)
	}
	index, why := chooseIndex(indexes)
	if index == nil {
		return nil, refuse(capture.RefusedNoKey, why+": give it a primary key; until then nothing that its log leaves out is found")
	}
	w, err := newWalk(t, index, loggedKey(indexes), needs.Columns, made)
	if err != nil {
		return nil, err
	}
	probe, _, err := w.query(nil, 0)
	if err != nil {
		return nil, err
	}
	if err := eachRow(ctx, conn, "SELECT "+probe, func([]sql.NullString) {}); err != nil {
		err = refusedTable(table, err)
		var refused *capture.TableRefusedError
		if errors.As(err, &refused) && refused.Cause == capture.RefusedGrant {
			refused.Hint = "`lethe setup`, or as the owner: GRANT SELECT (" + w.reads() + ") ON " + quoteTable(table) + " TO the login of Lethe"
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.walks[table]; known != nil && slices.Equal(known.walk.table.Columns, w.table.Columns) {
		w.table = known.walk.table
	}
	return w, nil
}

// refusedTable makes a refusal of an error of the server that stays as it is until a person does something.
func refusedTable(table string, err error) error {
	refusal := &capture.TableRefusedError{Table: table}
	switch pii.MySQLNumber(err) {
	case databaseDenied, tableDenied, columnDenied:
		refusal.Cause, refusal.Hint = capture.RefusedGrant, "Lethe's login may not read what is mapped of it; `lethe check` prints the statement"
	case unknownTable, unknownDatabase:
		refusal.Cause, refusal.Hint = capture.RefusedMissing, "the source has no such table; correct the mapping"
	case unknownColumn:
		refusal.Cause, refusal.Hint = capture.RefusedShape, "a mapped column is missing; `lethe check` names it"
	default:
		return fmt.Errorf("reading how table %s is made: %w", table, pii.DriverError(err))
	}
	return refusal
}

// counterOption is the one part of a table's definition that changes with its rows.
var counterOption = regexp.MustCompile(` AUTO_INCREMENT=\d+`)

// definition is a text that changes with every change of how a table is made: the statement that makes it, else, for a login
// that may not see that, what the catalog says.
func (in *inspection) definition(ctx context.Context, database, name string) (text string, err error) {
	err = in.each(ctx, "SHOW CREATE TABLE "+quoteName(database)+"."+quoteName(name), func(row []sql.NullString) { text = row[1].String })
	if n := pii.MySQLNumber(err); n != tableDenied && n != columnDenied && n != databaseDenied {
		return counterOption.ReplaceAllString(text, ""), err
	}
	t, err := in.readTable(ctx, database, name)
	if err != nil || t == nil {
		return "", err
	}
	indexes, err := in.readIndexes(ctx, t)
	return fmt.Sprintf("%+v %+v", *t, indexes), err
}

// readIndexes reads the unique indexes of a table in the server's order.
func (in *inspection) readIndexes(ctx context.Context, t *catalogTable) (list []catalogIndex, err error) {
	err = in.each(ctx, "SHOW INDEX FROM "+t.quoted()+" WHERE Non_unique = 0", func(row []sql.NullString) {
		name, column, way, prefix, null, kind := row[2].String, row[4], row[5].String, row[7], row[9].String, row[10].String
		if len(list) == 0 || list[len(list)-1].name != name {
			list = append(list, catalogIndex{name: name})
		}
		x := &list[len(list)-1]
		x.columns, x.descending = append(x.columns, column.String), append(x.descending, way == "D")
		x.loose = x.loose || !column.Valid || prefix.Valid || null == "YES"
		switch {
		case !column.Valid:
			x.unfit = "is one of an expression"
		case prefix.Valid:
			x.unfit = "holds only the beginning of column " + column.String
		case null == "YES":
			x.unfit = "may be NULL"
		case kind != "BTREE":
			x.unfit = "has no order"
		case len(row) == 14 && row[13].String == "YES", len(row) > 14 && row[13].String == "NO": // MariaDB's Ignored, MySQL's Visible
			x.unfit = "is hidden from the optimizer"
		}
	})
	return list, err
}

// errUnordered is of a server whose log tells nothing of what can be seen.
var errUnordered = errors.New("what is in the log need not be seen in its order")

// readable refuses every table of a server on which a read cannot wait for what was streamed.
func (s *Source) readable(ctx context.Context, conn *sql.Conn, table string) error {
	facts, err := readServer(ctx, conn)
	if err != nil || facts.mode != modeFile {
		return err
	}
	refusal := &capture.TableRefusedError{Table: table, Cause: capture.RefusedOrder}
	err = ordered(ctx, conn)
	switch {
	case errors.Is(err, errUnordered):
		refusal.Hint = "the server has neither gtid_mode=ON nor binlog_order_commits=ON: one of them is needed to know what a read has to see"
	case err != nil:
		return err
	case s.o.Heartbeat == "":
		refusal.Hint = "without gtid_mode=ON, reads are put behind the log by a heartbeat: set source.mysql.heartbeat_table"
	default:
		return nil
	}
	return refusal
}

// ordered returns errUnordered where transactions need not be committed in the order of the log.
func ordered(ctx context.Context, conn *sql.Conn) error {
	var on bool
	if err := conn.QueryRowContext(ctx, "SELECT @@global.binlog_order_commits").Scan(&on); err != nil {
		return fmt.Errorf("reading binlog_order_commits: %w", pii.DriverError(err))
	}
	if !on {
		return errUnordered
	}
	return nil
}

package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"lethe/capture"
)

// Watermark implements capture.Snapshotter: the position of everything that is committed now. A heartbeat behind it makes the
// stream pass the mark where nothing else is written.
func (s *Source) Watermark(ctx context.Context) (capture.Mark, error) {
	var m capture.Mark
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		facts, err := readServer(ctx, conn)
		if err != nil {
			return err
		}
		if m, err = facts.mark(); err != nil {
			return fmt.Errorf("reading where the log stands: %w", err)
		}
		if s.o.Heartbeat == "" {
			return nil
		}
		return s.beat(ctx, conn)
	})
	if err != nil {
		return nil, fmt.Errorf("marking the end of the log: %w", fleeting(err))
	}
	return m, nil
}

// fleeting keeps what a person has to set on the server from ending capture where a pass meets it: the stream can do without.
func fleeting(err error) error {
	var setup *SetupError
	if errors.As(err, &setup) {
		return errors.New(setup.Error())
	}
	return err
}

func (f *serverFacts) mark() (capture.Mark, error) {
	switch f.mode {
	case modeMariaDB:
		set, err := parseDomainSet(f.executed)
		g, _ := set.of(f.domain)
		return domainMark(g), err
	case modeGTID:
		set, err := parseGTIDs(f.executed)
		return gtidMark(set), err
	case modeFile:
	}
	place, err := parseFilePlace(f.executed)
	if err != nil {
		return nil, err
	}
	n, err := place.number()
	return fileMark(n), err
}

// gtidMark is what MySQL had executed.
type gtidMark gtidSet

// Passed implements capture.Mark.
func (m gtidMark) Passed(p capture.Position) bool {
	read, err := parseGTIDs(p.GTID)
	return err == nil && len(gtidSet(m).minus(read)) == 0
}

// domainMark is the last GTID of MariaDB in the domain that is followed; of other domains nothing is handed over.
type domainMark domainGTID

// Passed implements capture.Mark.
func (m domainMark) Passed(p capture.Position) bool {
	read, err := parseDomainSet(p.GTID)
	if err != nil {
		return false
	}
	g, _ := read.of(m.domain)
	return g.number >= m.number
}

// fileMark is the number of a place in the log of a MySQL without GTIDs.
type fileMark uint64

// Passed implements capture.Mark.
func (m fileMark) Passed(p capture.Position) bool {
	place, err := parseFilePlace(p.GTID)
	if err != nil {
		return false
	}
	n, err := place.number()
	return err == nil && n >= uint64(m)
}

// covers reports whether s is as far as other in every domain.
func (s domainSet) covers(other domainSet) bool {
	for _, g := range other {
		if mine, ok := s.of(g.domain); !ok || mine.number < g.number {
			return false
		}
	}
	return true
}

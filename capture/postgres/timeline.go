package postgres

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
)

// timelines is the history of a server: which timeline each part of its log was written on.
type timelines struct {
	now   uint32
	ended []endedTimeline // ascending
}

type endedTimeline struct {
	id  uint32
	end uint64 // first position that is not of it
}

// at returns the timeline on which the record at lsn was written (tliOfPointInHistory in the server).
func (t timelines) at(lsn uint64) uint32 {
	for _, e := range t.ended {
		if lsn < e.end {
			return e.id
		}
	}
	return t.now
}

// parseTimelines reads a history file as TIMELINE_HISTORY sends it: lines of parent timeline, switch point and reason.
func parseTimelines(now uint32, content []byte) (timelines, error) {
	t := timelines{now: now}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return t, fmt.Errorf("reading the history of timeline %d: a line of %d fields", now, len(fields))
		}
		id, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return t, fmt.Errorf("reading the history of timeline %d: %w", now, err)
		}
		end, err := pglogrepl.ParseLSN(fields[1])
		if err != nil {
			return t, fmt.Errorf("reading the history of timeline %d: %w", now, err)
		}
		t.ended = append(t.ended, endedTimeline{id: uint32(id), end: uint64(end)})
	}
	return t, lines.Err()
}

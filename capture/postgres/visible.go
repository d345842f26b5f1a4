package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// visibility knows which transactions the stream has handed over that other sessions may not see yet.
//
// A commit is in the log, and with it in the stream, before the transaction leaves the list of those that run: in between
// it waits for a synchronous standby, which may take for ever. A row that is read then is as it was before. So the xids of
// what the stream hands over are kept until some snapshot has seen them.
type visibility struct {
	mu sync.Mutex
	// streamed are transactions that no snapshot is known to see, in the order of their commits.
	streamed []streamedXID
	count    uint64 // of all that were ever handed over
	// floor is an xid below which no transaction may run any more: it stands for transactions whose own xids are not known.
	floor    uint32
	hasFloor bool
	// unknown is set when a stream begins: what an earlier one, perhaps of another process, has handed over is not in streamed.
	unknown bool
}

type streamedXID struct {
	xid   uint32
	place uint64 // by count
}

// streamedXIDs bounds what is kept: 1 MB. What is beyond it is replaced by a floor, for which a read waits longer than it
// would have to, and never shorter.
const streamedXIDs = 1 << 16

// begins is called when a stream starts.
func (v *visibility) begins() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unknown = true
}

// commits is called with each transaction before it is handed over.
func (v *visibility) commits(xid uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.streamed) == streamedXIDs {
		highest := slices.MaxFunc(v.streamed, func(a, b streamedXID) int { return compareXID(a.xid, b.xid) })
		v.raise(highest.xid + 1)
		v.streamed = v.streamed[:0]
	}
	v.streamed = append(v.streamed, streamedXID{xid, v.count})
	v.count++
}

// now is the place behind what was handed over so far.
func (v *visibility) now() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.count
}

func (v *visibility) raise(xid uint32) {
	if !v.hasFloor || compareXID(v.floor, xid) < 0 {
		v.floor, v.hasFloor = xid, true
	}
}

// needsFloor reports whether below has to be called before sees can tell.
func (v *visibility) needsFloor() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unknown
}

// below says that every transaction which an earlier stream may have handed over has an xid below this one: it was given out
// after the stream began.
func (v *visibility) below(xid uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.raise(xid)
	v.unknown = false
}

// sees reports whether a snapshot sees all that was handed over before a place, and forgets what it sees. What came later need
// not be seen: its own events are newer than the snapshot's. Where it does not see all, missing is how many transactions; 0:
// those that ran before the stream began.
func (v *visibility) sees(s *snapshot, before uint64) (all bool, missing int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unknown {
		return false, 0
	}
	if v.hasFloor && compareXID(s.xmin, v.floor) >= 0 {
		v.hasFloor = false
	}
	v.streamed = slices.DeleteFunc(v.streamed, func(t streamedXID) bool { return s.sees(t.xid) })
	for missing < len(v.streamed) && v.streamed[missing].place < before {
		missing++
	}
	return !v.hasFloor && missing == 0, missing
}

// snapshot is a value of pg_current_snapshot(), with xids cut to the 32 bits that the log has: those of one time are within
// 2^31 of each other.
type snapshot struct {
	xmin, xmax uint32
	running    []uint32
}

// sees is pg_visible_in_snapshot for a transaction that has committed.
func (s *snapshot) sees(xid uint32) bool {
	switch {
	case compareXID(xid, s.xmin) < 0:
		return true
	case compareXID(xid, s.xmax) >= 0:
		return false
	}
	return !slices.Contains(s.running, xid)
}

// compareXID compares xids that may have gone round (TransactionIdPrecedes).
func compareXID(a, b uint32) int {
	d := int32(a - b) //nolint:gosec // two's complement is what is meant
	switch {
	case d < 0:
		return -1
	case d > 0:
		return 1
	}
	return 0
}

var errSnapshot = errors.New("the server's snapshot is not in the expected form")

// parseSnapshot reads xmin:xmax:xid,xid,….
func parseSnapshot(text string) (*snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return nil, errSnapshot
	}
	var s snapshot
	var err error
	if s.xmin, err = xid32(parts[0]); err != nil {
		return nil, err
	}
	if s.xmax, err = xid32(parts[1]); err != nil {
		return nil, err
	}
	if parts[2] == "" {
		return &s, nil
	}
	for _, p := range strings.Split(parts[2], ",") {
		x, err := xid32(p)
		if err != nil {
			return nil, err
		}
		s.running = append(s.running, x)
	}
	return &s, nil
}

func xid32(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: no number", errSnapshot)
	}
	return uint32(n), nil //nolint:gosec // the lower half is wanted
}

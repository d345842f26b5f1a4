package mysql

import (
	"slices"

	"lethe/capture"
)

// firstEpoch is the epoch that a source begins with, and the only one of MariaDB.
const firstEpoch = 1

// epochs gives MySQL's transactions their epoch. The counters of two servers have no order between them, so a new epoch
// begins where the origin changes or the counter does not grow. The list is durable before the first event of a new epoch
// leaves (capture.EpochKeeper): a transaction that is sent again, whatever server sends it, finds its epoch in the list.
type epochs struct {
	list   []capture.Epoch // ascending by number
	now    uint32          // of the last transaction; 0: none yet
	origin string
	last   uint64
	// unkept is set until the Handler has been told of the list. The first transaction of an epoch may have nothing for it, so
	// that a later one is the first to be handed over.
	unkept bool
}

// of returns the epoch of the next transaction. An epoch that is known and lies ahead begins again at the transaction that it
// began with.
func (e *epochs) of(origin string, n uint64) uint32 {
	for i := range e.list {
		if known := &e.list[i]; known.Number > e.now && known.Origin == origin && known.From == n {
			e.now, e.origin, e.last = known.Number, origin, n
			return e.now
		}
	}
	if e.now != 0 && origin == e.origin && n > e.last {
		e.last = n
		return e.now
	}
	next := uint32(firstEpoch)
	if k := len(e.list); k > 0 {
		next = e.list[k-1].Number + 1
	}
	e.now, e.origin, e.last = next, origin, n
	e.list = append(e.list, capture.Epoch{Number: next, Origin: origin, From: n})
	e.unkept = true
	return next
}

// forget drops epochs before the one of the checkpoint: nothing of them can come again.
func (e *epochs) forget(before uint32) {
	e.list = slices.DeleteFunc(e.list, func(k capture.Epoch) bool { return k.Number < before && k.Number < e.now })
}

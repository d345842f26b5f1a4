package mysql

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"lethe/capture"
)

// history follows the positions of one stream. Of each transaction it tells what the place in the order is, and whether the
// log connects to what was read before.
type history struct {
	mode   mode
	set    gtidSet   // modeGTID: what was read, the checkpoint's own transaction included
	read   domainSet // modeMariaDB: the same
	domain uint32    // modeMariaDB: the one that is followed
	at     filePlace // modeFile: behind the last transaction

	epochs epochs // modeGTID
	last   uint64 // modeMariaDB: the followed domain's last number

	// verify is the checkpoint whose own transaction has to come once more; nil once it has, or where there is none.
	verify *capture.Checkpoint
	origin string // modeGTID: of that transaction

	text  string // the position as text
	fresh bool   // text is of now

	sid   []byte // of the last GTID event
	sidAs string

	pending pending
}

// pending is the transaction that the log is in.
type pending struct {
	origin  string // modeGTID
	domain  domainGTID
	foreign bool // modeMariaDB: in a domain that is not followed
	number  uint64
	epoch   uint32
	time    time.Time
	passing bool // it is the checkpoint's own: not handed over
}

// position is the text of what was read.
func (h *history) position() string {
	if h.fresh {
		return h.text
	}
	switch h.mode {
	case modeMariaDB:
		h.text = h.read.String()
	case modeGTID:
		h.text = h.set.String()
	case modeFile:
		h.text = h.at.String()
	}
	h.fresh = true
	return h.text
}

// uuid is the text of a server's uuid, which stays the same for long.
func (h *history) uuid(sid []byte) string {
	if bytes.Equal(sid, h.sid) {
		return h.sidAs
	}
	h.sid = bytes.Clone(sid)
	b := hex.EncodeToString(sid)
	h.sidAs = b[:8] + "-" + b[8:12] + "-" + b[12:16] + "-" + b[16:20] + "-" + b[20:]
	return h.sidAs
}

// hole is what is missing in front of a GTID; empty where nothing is.
type hole struct {
	origin   string
	interval interval
}

// beginGTID starts a transaction of MySQL. Where GTIDs in front of it were not read it returns them.
func (h *history) beginGTID(origin string, n uint64, at time.Time) (hole, error) {
	h.pending = pending{origin: origin, number: n, time: at}
	if v := h.verify; v != nil && n == v.Position.Commit && origin == h.origin {
		return hole{}, h.pass(v) // h.set has it already: others may come before it from a server that committed in another order
	}
	if h.set.has(origin, n) {
		return hole{}, forked(fmt.Sprintf("transaction %s:%d was read before and comes again as another", origin, n))
	}
	var missing hole
	if list := h.set[origin]; len(list) == 0 && n > 1 {
		missing = hole{origin, interval{1, n - 1}}
	} else if len(list) > 0 && n > list[len(list)-1].last+1 {
		missing = hole{origin, interval{list[len(list)-1].last + 1, n - 1}}
	}
	h.pending.epoch = h.epochs.of(origin, n)
	return missing, nil
}

// beginDomain starts a transaction of MariaDB.
func (h *history) beginDomain(g domainGTID, at time.Time) error {
	h.pending = pending{domain: g, number: g.number, epoch: firstEpoch, time: at, foreign: g.domain != h.domain}
	if h.pending.foreign {
		return nil
	}
	if v := h.verify; v != nil {
		if was, err := parseDomainSet(v.Position.GTID); err != nil || !slices.Contains(was, g) {
			return forked(fmt.Sprintf("the log does not hold the checkpoint's own transaction %s, %s is in its place", v.Position.GTID, g))
		}
		return h.pass(v)
	}
	switch {
	case h.last > 0 && g.number <= h.last:
		return forked(fmt.Sprintf("sequence number %d of domain %d comes after %d", g.number, g.domain, h.last))
	case h.last > 0 && g.number > h.last+1: // a domain of which nothing was read may begin anywhere
		return holed(fmt.Sprintf("%d-*-%d", g.domain, h.last+1))
	}
	return nil
}

// beginFile starts a transaction whose first event lies at place.
func (h *history) beginFile(place filePlace, at time.Time) error {
	n, err := place.number()
	h.pending = pending{number: n, epoch: firstEpoch, time: at}
	if err != nil || h.verify == nil {
		return err
	}
	if n != h.verify.Position.Commit {
		return forked(fmt.Sprintf("the log has no transaction at %s, where the checkpoint's own began", h.verify.Position.Before))
	}
	return h.pass(h.verify)
}

// pass compares the transaction that begins with the checkpoint's own. A server that was reset or restored may have given
// its place in the order to another one.
func (h *history) pass(v *capture.Checkpoint) error {
	if h.pending.time.UnixMilli() != v.CommittedAt.UnixMilli() {
		return forked(fmt.Sprintf("another transaction has the place of the checkpoint's own, %s", v.Position))
	}
	h.pending.passing = true
	return nil
}

// end takes the transaction into what was read. In modeFile place is where it ended.
func (h *history) end(place filePlace) error {
	h.fresh = false
	p := &h.pending
	switch h.mode {
	case modeMariaDB:
		h.read = h.read.with(p.domain)
		if !p.foreign {
			h.last = p.number
		}
	case modeGTID:
		if !p.passing {
			h.set.add(p.origin, p.number)
		}
	case modeFile:
		h.at = place
		if p.passing && h.at.String() != h.verify.Position.GTID {
			return forked(fmt.Sprintf("the checkpoint's own transaction ended at %s, the one in its place at %s", h.verify.Position.GTID, h.at))
		}
	}
	if p.passing {
		h.verify = nil
	}
	return nil
}

func forked(what string) error {
	return &capture.GapError{
		Cause: capture.GapForkedHistory,
		Hint: what + ": the source was reset or restored, or a replica was promoted that lacked the newest commits; list the erasures after " +
			"that point, then `lethe gap resume --accept-loss`",
	}
}

func holed(what string) error {
	return &capture.GapError{
		Cause: capture.GapHole,
		Hint: "the log goes on behind " + what + " without having it: a replica was promoted that lacked it, or it was skipped by hand; find out " +
			"what it changed, then `lethe gap resume --accept-loss`",
	}
}

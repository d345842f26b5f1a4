package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/klauspost/compress/zstd"

	"lethe/capture"
)

// The record batch, version 2 (https://kafka.apache.org/documentation/#recordbatch), is written here and not by kafka-go:
// records go straight into the bytes that are sent, without an object for each, and a batch that is sent again is the
// same to the byte.
const (
	sizePrefix  = 4  // of the record set in the produce request
	headerBytes = 61 // of the batch, up to and with the count of records
	prefixBytes = sizePrefix + headerBytes

	atBatchLength     = sizePrefix + 8
	atLeaderEpoch     = sizePrefix + 12
	atMagic           = sizePrefix + 16
	atCRC             = sizePrefix + 17
	atAttributes      = sizePrefix + 21
	atLastOffsetDelta = sizePrefix + 23
	atFirstTimestamp  = sizePrefix + 27
	atMaxTimestamp    = sizePrefix + 35
	atProducer        = sizePrefix + 43 // id, epoch, base sequence
	atCount           = sizePrefix + 57

	zstdAttribute = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch is what one partition gets of a unit.
type batch struct {
	buf    []byte // prefix, then records; empty while there is none
	packed []byte // the same with the records compressed; set by seal
	count  int32
}

// unit implements capture.Unit. It is used by one goroutine at a time.
type unit struct {
	batches  []batch
	bytes    int
	largest  int
	maxBatch int
	maxBytes int
	sealed   bool
	// abandoned: a request that failed may still read the buffers, so that Reset leaves them to it.
	abandoned bool
}

func newUnit(partitions, maxBatch, maxBytes int) *unit {
	return &unit{batches: make([]batch, partitions), maxBatch: maxBatch, maxBytes: maxBytes}
}

// errRecordTooLarge speaks of sizes only.
var errRecordTooLarge = errors.New("the record is larger than a batch may be")

// Append implements capture.Unit.
func (u *unit) Append(key, value []byte) error {
	b := &u.batches[partitionOf(key, len(u.batches))]
	n := recordBytes(b.count, len(key), len(value))
	if err := u.fits(b, n); err != nil {
		return err
	}
	u.add(b, n, key, value)
	return nil
}

// AppendAll implements capture.Unit: all partitions or none.
func (u *unit) AppendAll(value []byte) error {
	for i := range u.batches {
		b := &u.batches[i]
		if err := u.fits(b, recordBytes(b.count, -1, len(value))); err != nil {
			return err
		}
	}
	for i := range u.batches {
		b := &u.batches[i]
		u.add(b, recordBytes(b.count, -1, len(value)), nil, value)
	}
	return nil
}

func (u *unit) fits(b *batch, n int) error {
	switch {
	case n+varintBytes(int64(n))+prefixBytes > u.maxBatch:
		return fmt.Errorf("%w: %d of %d bytes", errRecordTooLarge, n, u.maxBatch)
	case len(b.buf)+n+varintBytes(int64(n))+prefixBytes > u.maxBatch:
		return capture.ErrUnitFull
	case u.bytes >= u.maxBytes:
		return capture.ErrUnitFull
	}
	return nil
}

// Full implements capture.Unit: a quarter is left for what the source has already read.
func (u *unit) Full() bool {
	return u.bytes >= u.maxBytes/4*3 || u.largest >= u.maxBatch/4*3
}

// Bytes implements capture.Unit.
func (u *unit) Bytes() int { return u.bytes }

// Reset implements capture.Unit.
func (u *unit) Reset() {
	for i := range u.batches {
		b := &u.batches[i]
		if u.abandoned {
			b.buf, b.packed = nil, nil
		}
		b.buf, b.packed, b.count = b.buf[:0], b.packed[:0], 0
	}
	u.bytes, u.largest, u.sealed, u.abandoned = 0, 0, false, false
}

// recordBytes is the length of a record after its own length field. keyLen is -1 for no key.
func recordBytes(offsetDelta int32, keyLen, valueLen int) int {
	return 1 + 1 + varintBytes(int64(offsetDelta)) + // attributes, timestamp delta 0, offset delta
		varintBytes(int64(keyLen)) + max(keyLen, 0) +
		varintBytes(int64(valueLen)) + valueLen +
		1 // no headers
}

// add appends a record of n bytes; fits has been asked.
func (u *unit) add(b *batch, n int, key, value []byte) {
	before := len(b.buf)
	if before == 0 {
		b.buf = append(b.buf, make([]byte, prefixBytes)...)
	}
	buf := binary.AppendVarint(b.buf, int64(n))
	buf = append(buf, 0, 0) // attributes, timestamp delta
	buf = binary.AppendVarint(buf, int64(b.count))
	if key == nil {
		buf = binary.AppendVarint(buf, -1)
	} else {
		buf = binary.AppendVarint(buf, int64(len(key)))
		buf = append(buf, key...)
	}
	buf = binary.AppendVarint(buf, int64(len(value)))
	buf = append(buf, value...)
	b.buf = append(buf, 0) // headers
	b.count++
	u.bytes += len(b.buf) - before
	u.largest = max(u.largest, len(b.buf))
}

// varintBytes is the length of binary.AppendVarint (zig-zag, as in Kafka's records).
func varintBytes(v int64) int {
	x := uint64(v<<1 ^ v>>63) //nolint:gosec // the bits are meant
	n := 1
	for x >= 0x80 {
		x >>= 7
		n++
	}
	return n
}

// seal completes the headers, once: a unit that is sent again carries the same bytes and times.
func (u *unit) seal(now time.Time, pack *zstd.Encoder) {
	if u.sealed {
		return
	}
	u.sealed = true
	for i := range u.batches {
		b := &u.batches[i]
		if b.count == 0 {
			continue
		}
		attributes := uint16(0)
		if pack != nil && len(b.buf) > compressAbove {
			b.packed = append(b.packed[:0], b.buf[:prefixBytes]...)
			b.packed = pack.EncodeAll(b.buf[prefixBytes:], b.packed)
			attributes = zstdAttribute
		}
		b.writeHeader(b.bytes(), attributes, now.UnixMilli())
	}
}

// compressAbove is where compression begins to pay: below it a batch is one network packet anyway.
const compressAbove = 2048

// bytes are what is sent: the record set with its size.
func (b *batch) bytes() []byte {
	if len(b.packed) > 0 {
		return b.packed
	}
	return b.buf
}

func (b *batch) writeHeader(p []byte, attributes uint16, now int64) {
	be := binary.BigEndian
	be.PutUint32(p, uint32(len(p)-sizePrefix))                            //nolint:gosec // bounded by maxBatch
	be.PutUint64(p[sizePrefix:], 0)                                       // base offset
	be.PutUint32(p[atBatchLength:], uint32(len(p)-atBatchLength-4))       //nolint:gosec // bounded by maxBatch
	be.PutUint32(p[atLeaderEpoch:], ^uint32(0))                           // -1: not known
	p[atMagic] = 2                                                        // version
	be.PutUint16(p[atAttributes:], attributes)                            // codec
	be.PutUint32(p[atLastOffsetDelta:], uint32(b.count-1))                //nolint:gosec // positive
	be.PutUint64(p[atFirstTimestamp:], uint64(now))                       //nolint:gosec // after 1970
	be.PutUint64(p[atMaxTimestamp:], uint64(now))                         //nolint:gosec // after 1970
	be.PutUint64(p[atProducer:], ^uint64(0))                              // -1: no idempotence
	be.PutUint16(p[atProducer+8:], ^uint16(0))                            // epoch -1
	be.PutUint32(p[atProducer+10:], ^uint32(0))                           // sequence -1
	be.PutUint32(p[atCount:], uint32(b.count))                            //nolint:gosec // positive
	be.PutUint32(p[atCRC:], crc32.Checksum(p[atAttributes:], castagnoli)) // everything after the checksum
}

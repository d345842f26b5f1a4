package mysql

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/klauspost/compress/zstd"
)

// payload unfolds a compressed transaction of MySQL (binlog_transaction_compression) event by event. Its compressed form
// comes as one event, which is in memory; unfolded it never is.
type payload struct {
	zstd  *zstd.Decoder
	event []byte
}

// maxWindow is the most memory that a stream may ask for: MySQL's levels use up to 128 MB of it at most.
const maxWindow = 128 << 20

var errPayload = errors.New("a compressed transaction cannot be read")

func (p *payload) close() {
	if p.zstd != nil {
		p.zstd.Close()
	}
}

// read calls each for every event within.
func (p *payload) read(data []byte, each func(*replication.EventHeader, []byte) error) error {
	r, err := p.open(data)
	if err != nil {
		return err
	}
	var h replication.EventHeader
	for {
		p.event = grow(p.event, replication.EventHeaderSize)
		if _, err := io.ReadFull(r, p.event); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return errPayload // the library's words may hold data
		}
		if err := h.Decode(p.event); err != nil {
			return errPayload
		}
		n := int(h.EventSize) - replication.EventHeaderSize
		if uint64(h.EventSize) > maxQuery {
			return errPayload
		}
		p.event = grow(p.event, n)
		if _, err := io.ReadFull(r, p.event); err != nil {
			return errPayload
		}
		if err := each(&h, p.event); err != nil {
			return err
		}
	}
}

// grow returns a slice of n bytes, of the memory of b where that is enough.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, n+n/4)
	}
	return b[:n]
}

// open reads the fields in front of the content (libbinlogevents, Transaction_payload_event).
func (p *payload) open(data []byte) (io.Reader, error) {
	const end, size, compression, unfolded = 0, 1, 2, 3
	const none, compressed = 255, 0
	c := cursor{b: data}
	kind := uint64(none)
	for {
		field := c.packed()
		if field == end || c.short {
			break
		}
		value := cursor{b: c.bytes(c.packed())}
		switch field {
		case compression:
			kind = value.packed()
		case size, unfolded: // what follows tells
		}
	}
	if c.short {
		return nil, errPayload
	}
	switch kind {
	case none:
		return bytes.NewReader(c.b), nil
	case compressed:
	default:
		return nil, fmt.Errorf("a transaction is compressed in the unknown way %d", kind)
	}
	var err error
	if p.zstd == nil {
		p.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, errPayload
		}
	}
	if err := p.zstd.Reset(bytes.NewReader(c.b)); err != nil {
		return nil, errPayload
	}
	return p.zstd, nil
}

// payload reads a compressed transaction.
func (st *stream) payload(data []byte) error {
	if err := st.inside("a compressed transaction"); err != nil {
		return err
	}
	at := st.place()
	err := st.zip.read(data, func(h *replication.EventHeader, body []byte) error { return st.body(h, st.begin, body) })
	if errors.Is(err, errPayload) {
		return &DecodeError{At: at, Err: err}
	}
	return err
}

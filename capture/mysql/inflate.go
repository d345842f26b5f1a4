package mysql

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
)

// maxInflated is the largest event that a server can have written: max_allowed_packet is at most 1 GiB.
const maxInflated = 1 << 30

// keptInflated is the largest buffer that is kept for the next event.
const keptInflated = 1 << 20

// inflater reads what MariaDB deflates under log_bin_compress: a byte of which the lowest three bits say how many bytes of
// the length follow (the highest first), and a zlib stream.
type inflater struct {
	src bytes.Reader
	zip io.ReadCloser
	buf []byte
}

var errInflate = errors.New("deflated rows cannot be read")

// inflate returns the content, which is valid until the next call.
func (z *inflater) inflate(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errShort
	}
	size := int(b[0] & 7)
	if algorithm := b[0] >> 4 & 7; algorithm != 0 || size < 1 || size > 4 {
		return nil, errInflate
	}
	if len(b) < 1+size {
		return nil, errShort
	}
	n := big(b[1 : 1+size])
	// zlib shrinks to a thousandth at best; a length beyond that would only make us reserve memory.
	if n > maxInflated || n > 1100*uint64(len(b)) {
		return nil, errInflate
	}
	z.src.Reset(b[1+size:])
	var err error
	if z.zip == nil {
		z.zip, err = zlib.NewReader(&z.src)
	} else {
		err = z.zip.(zlib.Resetter).Reset(&z.src, nil) //nolint:forcetypeassert // as zlib documents
	}
	if err != nil {
		z.zip = nil
		return nil, errInflate
	}
	out := z.buf
	if uint64(cap(out)) < n {
		out = make([]byte, n)
		if n <= keptInflated {
			z.buf = out
		}
	}
	out = out[:n]
	if _, err := io.ReadFull(z.zip, out); err != nil {
		return nil, errInflate
	}
	return out, nil
}

package schema

import (
	"fmt"
	"time"
)

// ReconsentDue says that a consent fell in one replica because the contact point that it was given for was replaced or removed, so that whoever
// runs the replica may ask the person again. A sink makes it and sends it with its receipts. It is not signed: it permits nothing.
type ReconsentDue struct {
	Replica    string
	SubjectRef SubjectRef // the replica's own re-keyed pseudonym, as in its tables; never an event's
	Purpose    string
	Channel    string
	Cause      string     // a code
	Contact    ContactRef // the point that the consent was about; zero: not bound to one
	EventID    EventID    // of what made it fall
	Order      Order      // of that event
	At         time.Time  // by the replica's clock
}

// AppendReconsentDue appends the single-object encoded ReconsentDue to dst. On an error dst comes back as it was given.
func AppendReconsentDue(dst []byte, d *ReconsentDue) ([]byte, error) {
	w := writer{b: append(dst, headers[recordReconsentDue][:]...)}
	w.str("replica", d.Replica)
	w.b = append(w.b, d.SubjectRef[:]...)
	w.str("purpose", d.Purpose)
	w.named("channel", channelNames, d.Channel)
	w.str("cause", d.Cause)
	w.optID((*[16]byte)(&d.Contact))
	w.b = append(w.b, d.EventID[:]...)
	w.b = append(w.b, d.Order[:]...)
	w.time(d.At)
	if w.err == nil && len(w.b)-len(dst) > MaxMessage {
		w.err = ErrTooLarge
	}
	if w.err != nil {
		return dst, fmt.Errorf("encoding re-consent notice of replica %q: %w", d.Replica, w.err)
	}
	return w.b, nil
}

// DecodeReconsentDue reads what AppendReconsentDue writes. Its error is ErrTooLarge, ErrMalformed or ErrUnknownSchema; the last is also
// what a receipt on the same topic gives.
func DecodeReconsentDue(value []byte) (*ReconsentDue, error) {
	r, err := readerOf(value, recordReconsentDue)
	if err != nil {
		return nil, err
	}
	d := &ReconsentDue{Replica: r.str()}
	r.fixed(d.SubjectRef[:])
	d.Purpose, d.Channel, d.Cause = r.str(), channelNames[r.enum(channelNames)], r.str()
	r.optFixed(d.Contact[:])
	r.fixed(d.EventID[:])
	r.fixed(d.Order[:])
	d.At = r.time()
	if r.bad || r.left() != 0 {
		return nil, ErrMalformed
	}
	return d, nil
}

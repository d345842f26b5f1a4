package capturetest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lethe/capture"
	"lethe/schema"
)

// Published is an event as it came into the topic.
type Published struct {
	ID    string
	Order []byte
	Pass  bool // it is of kind snapshot
	RunID string
	Type  string
	Key   string // the CRM key, a number
	Scope string // of the fact
	State string
}

// eventText writes events as Published.
type eventText struct{}

// Append implements capture.Encoder.
func (eventText) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	p := Published{ID: ev.EventID.String(), Order: ev.Order[:], Pass: ev.Kind == schema.KindSnapshot, RunID: ev.RunID, Type: ev.Body.Type().String(), Key: plainKey(ev.CRMKey)}
	switch body := ev.Body.(type) {
	case *schema.ConsentChange:
		p.Scope, p.State = body.Purpose+"/"+body.Channel, fmt.Sprint(body.State)
	case *schema.Objection:
		p.Scope, p.State = body.Scope, fmt.Sprint(body.Raised)
	case *schema.SubjectErasure:
		p.State = "erasure"
	case *schema.SourceReport:
		p.State = fmt.Sprintf("%s %t %s", body.Aspect, body.Satisfied, strings.Join(body.Missing, ","))
		if body.Aspect != schema.AspectCompleteness {
			p.State += " " + moment(body.ReceivedAt) + " " + moment(body.LegalDueAt)
		}
	case *schema.CaseDecision:
		p.State = fmt.Sprintf("decision %s %s %s", body.Decision, body.Reason, strings.Join(body.Checks, ","))
	case *schema.PassMarker:
		p.State = fmt.Sprintf("begin %t full %t", body.Begin, body.Full)
	}
	text, err := json.Marshal(p)
	return append(dst, text...), err
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

// plainKey takes the number out of the canonical form of a key, in which what tells its parts apart goes before it.
func plainKey(key []byte) string {
	return strings.TrimLeftFunc(string(key), func(r rune) bool { return r < '0' || r > '9' })
}

// topic is a topic of one partition. It implements capture.Publisher and capture.EventLog.
type topic struct {
	mu  sync.Mutex
	all []Published
}

func (t *topic) events() []Published {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.all)
}

// Open implements capture.Publisher.
func (t *topic) Open(context.Context) error { return nil }

// NewUnit implements capture.Publisher.
func (t *topic) NewUnit() capture.Unit { return &unit{} }

// Publish implements capture.Publisher.
func (t *topic) Publish(_ context.Context, u capture.Unit) error {
	mine, ok := u.(*unit)
	if !ok {
		return fmt.Errorf("publishing a %T", u)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, value := range mine.values {
		var p Published
		if err := json.Unmarshal(value, &p); err != nil {
			return err
		}
		t.all = append(t.all, p)
	}
	return nil
}

// Newest implements capture.EventLog.
func (t *topic) Newest(context.Context) (newest schema.Order, written bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.all {
		if bytes.Compare(e.Order, newest[:]) > 0 {
			newest = schema.Order(e.Order)
		}
	}
	return newest, len(t.all) > 0, nil
}

// unit implements capture.Unit.
type unit struct {
	values [][]byte
	bytes  int
}

const unitRecords = 1000

// Append implements capture.Unit.
func (u *unit) Append(_, value []byte) error { return u.AppendAll(value) }

// AppendAll implements capture.Unit.
func (u *unit) AppendAll(value []byte) error {
	if len(u.values) >= unitRecords {
		return capture.ErrUnitFull
	}
	u.values = append(u.values, slices.Clone(value))
	u.bytes += len(value)
	return nil
}

// Full implements capture.Unit.
func (u *unit) Full() bool { return len(u.values) >= unitRecords/2 }

// Bytes implements capture.Unit.
func (u *unit) Bytes() int { return u.bytes }

// Reset implements capture.Unit.
func (u *unit) Reset() { *u = unit{} }

// checkpoints implements capture.Checkpoints.
type checkpoints struct {
	mu   sync.Mutex
	text []byte
}

// Load implements capture.Checkpoints.
func (c *checkpoints) Load(context.Context) (*capture.Checkpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.text == nil {
		return nil, nil //nolint:nilnil // there never was one
	}
	var at capture.Checkpoint
	return &at, json.Unmarshal(c.text, &at)
}

// Save implements capture.Checkpoints.
func (c *checkpoints) Save(_ context.Context, at *capture.Checkpoint) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text, err = json.Marshal(at)
	return err
}

// passes implements capture.Passes.
type passes struct {
	mu       sync.Mutex
	text     []byte
	requests []capture.PassRequest
}

// Load implements capture.Passes.
func (p *passes) Load(context.Context) (*capture.PassBook, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	book := &capture.PassBook{Requests: slices.Clone(p.requests)}
	if p.text == nil {
		return book, nil
	}
	book.Pass = &capture.Pass{}
	return book, json.Unmarshal(p.text, book.Pass)
}

// Save implements capture.Passes.
func (p *passes) Save(_ context.Context, pass *capture.Pass) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, err = json.Marshal(pass)
	return err
}

// Ask implements capture.Passes.
func (p *passes) Ask(_ context.Context, r capture.PassRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(slices.DeleteFunc(p.requests, func(known capture.PassRequest) bool { return known.ID == r.ID }), r)
	return nil
}

// Answered implements capture.Passes.
func (p *passes) Answered(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = slices.DeleteFunc(p.requests, func(known capture.PassRequest) bool { return known.ID == id })
	return nil
}

// saved is what is stored of the newest pass.
func (p *passes) saved() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.text)
}

// testKeys are keys of one test. They implement schema.PRF and schema.AEAD.
type testKeys struct{ seal cipher.AEAD }

func newTestKeys() (*testKeys, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	return &testKeys{seal: seal}, err
}

// Compute implements schema.PRF.
func (k *testKeys) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, []byte("capturetest"))
	_, _ = h.Write(data) // never fails
	h.Sum(dst[:0])
}

// AppendSeal implements schema.AEAD.
func (k *testKeys) AppendSeal(dst, plaintext, associated []byte) ([]byte, error) {
	return k.seal.Seal(dst, nil, plaintext, associated), nil
}

// Open implements schema.AEAD.
func (k *testKeys) Open(sealed, associated []byte) ([]byte, error) {
	text, err := k.seal.Open(nil, nil, sealed, associated)
	if err != nil {
		return nil, errors.New("opening what is sealed: it was changed, or sealed under another key")
	}
	return text, nil
}

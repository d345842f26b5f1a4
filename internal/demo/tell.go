package demo

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// teller writes lines for a person, with the time since the beginning. A failure to write is the reader's loss only.
type teller struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

func newTeller(out io.Writer) *teller { return &teller{out: out, start: time.Now()} }

// line writes one line.
func (t *teller) line(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.out, "%6.1fs  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// block writes lines without the time.
func (t *teller) block(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprint(t.out, text)
}

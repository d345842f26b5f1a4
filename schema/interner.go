package schema

import (
	"maps"
	"sync"
	"sync/atomic"
)

// interner keeps one copy of the strings that every event repeats: names of sources and rules, purposes, codes. It is bounded,
// because a message is read before it is authenticated.
type interner struct {
	mu    sync.Mutex
	known atomic.Pointer[map[string]string]
}

const (
	internedTexts  = 512
	internedLength = 48
)

// get gives the string of b. A nil interner keeps nothing.
func (i *interner) get(b []byte) string {
	if i == nil || len(b) > internedLength {
		return string(b)
	}
	if known := i.known.Load(); known != nil {
		if s, ok := (*known)[string(b)]; ok {
			return s
		}
		if len(*known) >= internedTexts {
			return string(b)
		}
	}
	return i.add(string(b))
}

// add replaces the map by a larger copy, so that get never waits.
func (i *interner) add(s string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := map[string]string{}
	if known := i.known.Load(); known != nil {
		next = maps.Clone(*known)
	}
	next[s] = s
	i.known.Store(&next)
	return s
}

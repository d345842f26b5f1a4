package simulation

import (
	"fmt"
	"slices"
	"time"

	"lethe/capture"
)

// addCustomer inserts a person.
func (w *writer) addCustomer() *customer {
	r := w.c.rng
	c := &customer{
		id: len(w.c.customers) + 1, status: "A", noMarketing: chance(r, 10), claims: map[string]claim{},
	}
	c.email = fmt.Sprintf("%s-%d@example.org", canary, c.id)
	w.c.customers = append(w.c.customers, c)
	n := w.insert("public.customer", c.row())
	if c.noMarketing {
		w.expect(n, "objection", c, "objection direct_marketing raised")
	}
	return c
}

// updateCustomer changes a person's own row and says what follows from the difference.
func (w *writer) updateCustomer(c *customer, f func()) {
	old, before := c.row(), *c
	f()
	n := w.update("public.customer", old, c.row())
	if c.noMarketing != before.noMarketing {
		w.expect(n, "objection", c, objectionSays("direct_marketing", c.noMarketing))
	}
	if c.frozen != before.frozen || !c.frozenUntil.Equal(before.frozenUntil) {
		w.expect(n, "restricted", c, restrictionSays(c.frozen || !c.frozenUntil.IsZero(), c.frozenUntil))
	}
	if c.status == "E" && before.status != "E" {
		w.expect(n, "erased.when", c, "erasure by state")
		c.erased = true
	}
	if c.status != "E" && before.status == "E" {
		w.expect(n, "erased.revived", c, "revived at the source")
	}
}

func objectionSays(scope string, raised bool) string {
	if raised {
		return "objection " + scope + " raised"
	}
	return "objection " + scope + " lifted"
}

func restrictionSays(imposed bool, until time.Time) string {
	s := "restriction lifted"
	if imposed {
		s = "restriction imposed"
	}
	if !until.IsZero() {
		s += " until " + until.UTC().Format(time.RFC3339Nano)
	}
	return s
}

// someone picks a person whose row is still there; nil: nobody is.
func (w *writer) someone() *customer {
	for range 20 {
		if c := w.c.customers[w.c.rng.IntN(len(w.c.customers))]; !c.deleted {
			return c
		}
	}
	return nil
}

// act makes one random thing happen to a random person.
func (w *writer) act() {
	c := w.someone()
	if c == nil {
		w.addCustomer()
		return
	}
	r := w.c.rng
	switch n := r.IntN(100); {
	case n < 4:
		w.addCustomer()
	case n < 12:
		w.updateCustomer(c, func() { c.noMarketing = !c.noMarketing })
	case n < 18:
		w.restrict(c)
	case n < 26:
		w.prefer(c)
	case n < 62:
		w.consent(c)
	case n < 80:
		w.historic(c)
	case n < 84:
		w.owed(c)
	case n < 92:
		w.meansNothing(c)
	case n < 97:
		w.erase(c)
	default:
		w.revive(c)
	}
}

func (w *writer) restrict(c *customer) {
	r := w.c.rng
	w.updateCustomer(c, func() {
		c.frozen, c.frozenUntil = false, time.Time{}
		switch r.IntN(4) {
		case 0:
			c.frozen = true
		case 1:
			c.frozenUntil = w.c.now().Add(time.Duration(r.IntN(7200)-600) * time.Second)
		case 2:
			c.frozenUntil = w.c.now().Add(30 * 24 * time.Hour)
		}
	})
}

// prefer changes a table whose old rows the log does not carry.
func (w *writer) prefer(c *customer) {
	if !c.preference {
		c.preference, c.noProfiling = true, chance(w.c.rng, 50)
		n := w.insert("public.preference", c.preferenceRow())
		if c.noProfiling {
			w.expect(n, "objection", c, objectionSays("profiling", true))
		}
		return
	}
	before := c.noProfiling
	c.noProfiling = chance(w.c.rng, 50)
	n := w.update("public.preference", nil, c.preferenceRow())
	if c.noProfiling != before {
		w.expect(n, "objection", c, objectionSays("profiling", c.noProfiling))
	} else {
		w.maybe(n, "objection", c, objectionSays("profiling", c.noProfiling))
	}
}

// free reports whether a person has no consent yet in a scope.
func (c *customer) free(purpose, channel, point string) bool {
	return !slices.ContainsFunc(c.consents, func(r *consentRow) bool {
		return r.purpose == purpose && r.channel == channel && r.point() == point
	})
}

func (w *writer) contactOf(c *customer, channel string) string {
	switch n := w.c.rng.IntN(3); {
	case n == 2:
		return ""
	case channel == "E":
		return fmt.Sprintf("%s-email-%d-%d", canary, c.id, n)
	case channel == "S":
		return fmt.Sprintf("%s-phone-%d-%d", canary, c.id, n)
	default:
		return fmt.Sprintf("%s-address-%d-%d", canary, c.id, n)
	}
}

func (w *writer) content(row *consentRow) {
	r := w.c.rng
	row.status = pick(r, "Y", "Y", "Y", "Y", "N", "R", "U")
	row.basis = pick(r, "C", "C", "C", "C", "C", "")
	row.until = time.Time{}
	if chance(r, 20) {
		row.until = w.c.now().Add(time.Duration(r.IntN(10_000_000)-1_000_000) * time.Millisecond)
	}
}

// consent does something to a person's present consents.
func (w *writer) consent(c *customer) {
	r := w.c.rng
	if len(c.consents) == 0 || chance(r, 30) {
		row := &consentRow{id: w.id(), owner: c, purpose: pick(r, "NL", "OF"), channel: pick(r, "E", "E", "S", "P")}
		row.contact = w.contactOf(c, row.channel)
		if !c.free(row.purpose, row.channel, row.point()) {
			return
		}
		w.content(row)
		c.consents = append(c.consents, row)
		w.expect(w.insert("public.consent", row.row()), "consent", c, row.says())
		return
	}
	i := r.IntN(len(c.consents))
	row := c.consents[i]
	old, was := row.row(), *row
	switch n := r.IntN(100); {
	case n < 60:
		w.content(row)
		n := w.update("public.consent", old, row.row())
		if row.says() != was.says() || row.basis != was.basis {
			w.expect(n, "consent", c, row.says())
		}
	case n < 70:
		row.note = fmt.Sprint("note ", r.IntN(1000))
		w.update("public.consent", old, row.row())
	case n < 82:
		w.moveConsent(c, row)
	case n < 88:
		w.handOver(c, i)
	default:
		c.consents = slices.Delete(c.consents, i, i+1)
		w.expect(w.delete("public.consent", old), "consent.delete", c, was.gone())
	}
}

// moveConsent gives a consent another purpose, channel or contact point.
func (w *writer) moveConsent(c *customer, row *consentRow) {
	r := w.c.rng
	old, was := row.row(), *row
	to := *row
	switch r.IntN(3) {
	case 0:
		to.purpose = pick(r, "NL", "OF")
	case 1:
		to.channel = pick(r, "E", "S", "P")
		to.contact = w.contactOf(c, to.channel)
	default:
		to.contact = w.contactOf(c, to.channel)
	}
	same := to.purpose == was.purpose && to.channel == was.channel && to.point() == was.point()
	if !same && !c.free(to.purpose, to.channel, to.point()) {
		return
	}
	*row = to
	n := w.update("public.consent", old, row.row())
	switch {
	case !same:
		w.expect(n, "consent.moved", c, was.gone())
		w.expect(n, "consent", c, row.says())
	case to.contact != was.contact:
		w.maybe(n, "consent", c, row.says()) // nothing that anybody would notice
	}
}

// handOver gives a consent to another person.
func (w *writer) handOver(c *customer, i int) {
	row := c.consents[i]
	other := w.someone()
	if other == nil || other == c || !other.free(row.purpose, row.channel, row.point()) {
		return
	}
	old, was := row.row(), *row
	c.consents = slices.Delete(c.consents, i, i+1)
	row.owner = other
	other.consents = append(other.consents, row)
	n := w.update("public.consent", old, row.row())
	w.expect(n, "consent.moved", c, was.gone())
	w.expect(n, "consent", other, row.says())
}

// historic does something to a person's history of consents.
func (w *writer) historic(c *customer) {
	r := w.c.rng
	committed := w.tx.CommittedAt
	if len(c.history) == 0 || chance(r, 60) {
		row := &historyRow{id: w.id(), owner: c, channel: pick(r, "E", "S"), status: pick(r, "Y", "Y", "N", "R"), basis: pick(r, "C", "C", "C", "")}
		switch r.IntN(6) {
		case 0:
			row.asOf = committed.Add(time.Duration(r.IntN(100)+1) * time.Hour) // a clock that is wrong
		case 1, 2:
			row.asOf = committed.Add(-time.Duration(r.IntN(3_600_000)) * time.Millisecond)
		case 3: // none
		default:
			row.asOf = committed
		}
		c.history = append(c.history, row)
		w.expect(w.insert("public.consent_log", row.row()), "consent", c, row.says())
		counts := row.asOf
		if counts.After(committed) || counts.IsZero() && row.status != "Y" {
			counts = committed
		}
		c.claimed(row.channel, counts, row.status == "Y" && row.basis != "")
		return
	}
	i := r.IntN(len(c.history))
	row := c.history[i]
	old, was := row.row(), *row
	if chance(r, 25) {
		c.history = slices.Delete(c.history, i, i+1)
		w.expect(w.delete("public.consent_log", old), "consent.delete", c,
			consentSays("partners", channels[row.channel], "", "invalidated", "", time.Time{}))
		c.claimed(row.channel, committed, false)
		return
	}
	row.status = pick(r, "Y", "N", "R")
	n := w.update("public.consent_log", old, row.row())
	if was.status == "Y" && row.status != "Y" { // an old entry can only take permission away
		w.expect(n, "consent", c, row.says())
		c.claimed(row.channel, committed, false)
	}
}

// owed completes an erasure that took several transactions.
func (w *writer) owed(c *customer) {
	for _, c := range w.c.customers {
		switch {
		case c.deleted:
		case c.markerIsOwed:
			w.marker(c)
			return
		case c.stateIsOwed:
			w.clear(c)
			return
		}
	}
	w.meansNothing(c)
}

// erase is the CRM's procedure.
func (w *writer) erase(c *customer) {
	switch w.c.rng.IntN(5) {
	case 0:
		w.clear(c)
		w.marker(c)
	case 1:
		w.clear(c)
		c.markerIsOwed = true
	case 2:
		w.marker(c)
		c.stateIsOwed = true
	case 3:
		for len(c.consents) > 0 {
			row := c.consents[0]
			c.consents = c.consents[1:]
			w.expect(w.delete("public.consent", row.row()), "consent.delete", c, row.gone())
		}
		w.clear(c)
		w.marker(c)
	default:
		c.deleted, c.erased = true, true
		w.expect(w.delete("public.customer", c.row()), "erased.delete", c, "erasure by state")
	}
}

func (w *writer) clear(c *customer) {
	w.updateCustomer(c, func() { c.status, c.email, c.stateIsOwed = "E", "", false })
}

func (w *writer) marker(c *customer) {
	c.markerIsOwed, c.erased = false, true
	n := w.insert("public.customer_note", []cell{text(fmt.Sprint(w.id())), text(c.key()), text("GDPR_ERASURE")})
	w.expect(n, "erased.marker", c, "erasure by marker")
}

// revive gives an erased person a living row again; permission does not come back with it.
func (w *writer) revive(c *customer) {
	if c.status == "E" {
		w.updateCustomer(c, func() { c.status = "A" })
		return
	}
	w.meansNothing(c)
}

func (w *writer) meansNothing(c *customer) {
	switch w.c.rng.IntN(4) {
	case 0:
		w.insert("public.invoice", []cell{text(fmt.Sprint(w.id())), text(c.key()), text("12.50")})
	case 1:
		w.insert("public.customer_note", []cell{text(fmt.Sprint(w.id())), text(c.key()), text("CALLED")})
	case 2:
		w.updateCustomer(c, func() { c.email = fmt.Sprintf("%s-%d-%d@example.org", canary, c.id, w.id()) })
	default:
		n := w.add(change{op: capture.OpTruncate, table: "public.invoice"})
		_ = n
	}
}

// bulk is one huge transaction.
func (w *writer) bulk(n int) {
	for range n {
		w.act()
	}
}

// truncate empties a mapped table: nothing says whose rows those were.
func (w *writer) truncate() {
	n := w.add(change{op: capture.OpTruncate, table: "public.customer_note"})
	w.expect(n, "truncate", nil, "gap truncate")
}

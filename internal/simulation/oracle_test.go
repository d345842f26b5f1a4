package simulation

import (
	"fmt"
	"strings"
	"time"

	"lethe/sinks"
)

// verdict is what a replica may do with a person. It is computed twice: from the CRM's rows, and from the replica's facts.
type verdict struct {
	erased, restricted, marketing, profiling bool
	permitted                                string // purpose/channel, each with a blank behind
}

func (v verdict) String() string {
	return fmt.Sprintf("erased=%t restricted=%t objects to marketing=%t to profiling=%t permits [%s]",
		v.erased, v.restricted, v.marketing, v.profiling, strings.TrimSpace(v.permitted))
}

// uses are all pairs of purpose and channel.
var uses = func() (list [][2]string) {
	for _, purpose := range []string{"newsletter", "offers", "partners"} {
		for _, channel := range []string{"email", "sms", "postal"} {
			list = append(list, [2]string{purpose, channel})
		}
	}
	return list
}()

// wanted is the oracle: what the CRM's rows say of a person, without any event, fact or fold. erased is what became of the
// person's case in the replica asked about, for a case may have been cancelled there in time.
func (c *customer) wanted(erased bool, now time.Time) verdict {
	if erased {
		return verdict{erased: true}
	}
	v := verdict{
		restricted: c.frozen || !c.frozenUntil.IsZero() && now.Before(c.frozenUntil),
		marketing:  c.noMarketing, profiling: c.noProfiling,
	}
	if v.restricted || v.marketing {
		return v
	}
	for _, use := range uses {
		if c.permits(use[0], use[1], now) {
			v.permitted += use[0] + "/" + use[1] + " "
		}
	}
	return v
}

func (c *customer) permits(purpose, channel string, now time.Time) bool {
	if purpose == "partners" {
		for letter, name := range channels {
			if name == channel {
				return c.claims[letter].permit
			}
		}
		return false
	}
	rows := 0
	for _, r := range c.consents {
		if purposes[r.purpose] != purpose || channels[r.channel] != channel {
			continue
		}
		rows++
		if r.status != "Y" || r.basis == "" || !r.until.IsZero() && !now.Before(r.until) {
			return false
		}
	}
	return rows > 0
}

// verdictOf reads a replica's verdict.
func verdictOf(v sinks.Verdict) verdict {
	if v.Erased() {
		out := verdict{erased: true}
		for _, use := range uses {
			if v.Permitted(use[0], use[1]) {
				out.permitted += use[0] + "/" + use[1] + " "
			}
		}
		return out
	}
	out := verdict{restricted: v.Restricted(), marketing: v.Objected(sinks.ScopeDirectMarketing), profiling: v.Objected(sinks.ScopeProfiling)}
	for _, use := range uses {
		if v.Permitted(use[0], use[1]) {
			out.permitted += use[0] + "/" + use[1] + " "
		}
	}
	return out
}

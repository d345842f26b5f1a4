package app

import (
	"context"
	"encoding/hex"
	"time"

	"lethe/config"
	"lethe/schema"
)

// SubjectFinding is something that somebody ought to know about a subject of a replica. It names nobody.
type SubjectFinding struct {
	Replica string    `json:"replica"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject,omitempty"` // the replica's own reference, as in its tables; empty: a count of many
	Scope   string    `json:"scope,omitempty"`
	EventID string    `json:"event_id,omitempty"`
	Times   int64     `json:"times"`
	FirstAt time.Time `json:"first_at,omitzero"`
	LastAt  time.Time `json:"last_at,omitzero"`
	Means   string    `json:"means"`
}

// findingMeans says what a kind means, and what can be done about it.
var findingMeans = map[string]string{
	"refused_grant":    "a permission of an erased person was refused: only a new record in the CRM, with evidence of the consent, can be granted one",
	"no_basis":         "a grant without purpose or legal basis permits nothing: complete it in the CRM or the mapping",
	"revived_contact":  "a contact point came up after the erasure: it finds nobody; see why the CRM has it",
	"erased_contact":   "a new record has an erased person's contact point: its grants count only with evidence",
	"absorbed_erased":  "a duplicate was erased with the record that it was joined into",
	"absent":           "the last whole pass did not show this person: see whether the row was deleted unseen",
	"shared_key":       "contact points that several people hold: they find nobody by themselves",
	"ambiguous":        "matches wait for a person: lethe review list",
	"unmapped_columns": "erasures wait for a mapping of columns that look personal: lethe check",
}

// Findings lists what the replicas have found about subjects, the newest first, at most so many of each replica. What could be read is
// returned with an error too.
func Findings(ctx context.Context, cfg *config.Config, replica string, limit int) ([]SubjectFinding, error) {
	out := []SubjectFinding{}
	err := eachDesk(ctx, cfg, replica, func(name string, d desk) error {
		list, err := d.Findings(ctx, limit)
		for i := range list {
			f := &list[i]
			x := SubjectFinding{
				Replica: name, Kind: f.Kind, Scope: f.Scope, Times: f.Times, FirstAt: f.FirstAt.UTC(), LastAt: f.LastAt.UTC(), Means: findingMeans[f.Kind],
			}
			if f.Ref != nil {
				x.Subject = hex.EncodeToString(f.Ref[:])
			}
			if f.EventID != (schema.EventID{}) {
				x.EventID = f.EventID.String()
			}
			if f.FirstAt.IsZero() {
				x.FirstAt, x.LastAt = time.Time{}, time.Time{}
			}
			out = append(out, x)
		}
		return err
	})
	return out, err
}

package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"time"

	"lethe/capture"
	capturekafka "lethe/capture/kafka"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/schema"
)

// DecideOptions are one operator's decision on some cases.
type DecideOptions struct {
	Cases []string
	// Run: the cases that a pass has found, in the place of Cases. A release alone can be of so many people at once.
	Run      string
	Decision schema.Decision
	Replica  string // empty: all
	Reason   string // a code
	By       string // a role or pseudonym
	// Wait is how long to wait for the replicas to carry it out; 0: not at all.
	Wait time.Duration
}

// Decided is what became of one decision.
type Decided struct {
	Case    string `json:"case"`
	EventID string `json:"event_id"`
	// Outcomes are by replica: done, no_case, too_late, held; empty while it is not carried out.
	Outcomes map[string]string `json:"outcomes,omitempty"`
	// Run and Waiting: the case stands for so many of a pass.
	Run     string `json:"run,omitempty"`
	Waiting int    `json:"waiting,omitempty"`
}

// decided is a case that is decided on in one replica, or in all where replica is empty.
type decided struct {
	id      schema.CaseID
	replica string
	waiting int // cases of a pass that it stands for
}

var reasonCode = regexp.MustCompile(`^[a-z0-9_]{0,64}$`)

// Decide publishes decisions, keyed by the subject of the case, so that they reach every sink behind what was said of the
// subject before. The subject is found through the sealed key in a replica that has the case.
func Decide(ctx context.Context, cfg *config.Config, o DecideOptions) ([]Decided, error) {
	list, err := o.validate(cfg)
	if err == nil && o.Run != "" {
		list, err = o.ofRun(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	ring, err := keys.Open(cfg.Keys.Dir, keys.RoleOperator)
	if err != nil {
		return nil, err
	}
	conn, err := connectKafka(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	publisher, err := capturekafka.NewPublisher(capturekafka.Options{Conn: conn})
	if err != nil {
		return nil, err
	}
	d := &decider{
		cfg: cfg, o: o, ring: ring, conn: conn, publisher: publisher,
		ids: schema.NewIdentifiers(ring.Subject(), cfg.Name), encoder: schema.NewEncoder(ring.Seal()),
	}
	// All cases are looked for before the first decision goes out.
	events := make([]*schema.Event, len(list))
	for i, of := range list {
		if events[i], err = d.event(ctx, of); err != nil {
			return nil, err
		}
	}
	var out []Decided
	for i, ev := range events {
		if err := publisher.PublishDecision(ctx, d.encoder, ev); err != nil {
			return out, fmt.Errorf("case %s: %w", list[i].id, err)
		}
		out = append(out, Decided{Case: list[i].id.String(), EventID: ev.EventID.String(), Outcomes: map[string]string{}, Run: o.Run, Waiting: list[i].waiting})
	}
	if o.Wait <= 0 {
		return out, nil
	}
	return out, d.wait(ctx, events, out)
}

func (o *DecideOptions) validate(cfg *config.Config) ([]decided, error) {
	if err := CheckActor(o.By); err != nil {
		return nil, err
	}
	if !reasonCode.MatchString(o.Reason) {
		return nil, &UsageError{errors.New("--reason is a code of small letters, digits and _, never free text")}
	}
	if o.Replica != "" && cfg.Replicas[o.Replica] == nil {
		return nil, errNoReplica(cfg, o.Replica)
	}
	if o.Run != "" && (o.Decision != schema.DecisionRelease || len(o.Cases) > 0) {
		return nil, &UsageError{errors.New("--run releases what one pass has found: it takes no cases, and holds or cancels nothing")}
	}
	list := make([]decided, len(o.Cases))
	for i, text := range o.Cases {
		id, err := schema.ParseCaseID(text)
		if err != nil {
			return nil, &UsageError{fmt.Errorf("case %q: %w (`lethe cases` lists them)", text, err)}
		}
		list[i] = decided{id: id, replica: o.Replica}
	}
	return list, nil
}

// ofRun finds a case of the pass in each replica where any waits: its release takes the others with it, so that one decision
// a replica releases a hundred thousand people as it does two.
func (o *DecideOptions) ofRun(ctx context.Context, cfg *config.Config) ([]decided, error) {
	var list []decided
	err := eachDesk(ctx, cfg, o.Replica, func(name string, d desk) error {
		c, err := d.RunCases(ctx, o.Run)
		if c.Waiting > 0 {
			list = append(list, decided{id: c.Case, replica: name, waiting: c.Waiting})
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case list == nil:
		return nil, fmt.Errorf("no replica has a case of pass %q that waits for a release: `lethe cases --open --json` names the passes", o.Run)
	}
	return list, nil
}

type decider struct {
	cfg       *config.Config
	o         DecideOptions
	ring      *keys.Ring
	conn      *kafkaconn.Conn
	publisher *capturekafka.Publisher
	ids       *schema.Identifiers
	encoder   *schema.Encoder
	// checkpoint is read once; nil: none yet.
	checkpoint *capture.Checkpoint
	loaded     bool
}

// event makes the decision on one case. Its order is that of the newest checkpoint: decisions are not compared by order,
// but what is read last from a partition tells the incarnation.
func (d *decider) event(ctx context.Context, of decided) (*schema.Event, error) {
	id := of.id
	key, err := d.find(ctx, id)
	if err != nil {
		return nil, err
	}
	subject := d.ids.SubjectRef(key)
	if d.ids.CaseID(subject) != id {
		return nil, fmt.Errorf("case %s does not belong to source %s and its subject key: which config and which keys is it of?", id, d.cfg.Name)
	}
	if !d.loaded {
		if d.checkpoint, err = loadCheckpoint(ctx, d.cfg, d.conn); err != nil {
			return nil, err
		}
		d.loaded = true
	}
	order := schema.NewOrder(1, 0, 0, 0)
	if c := d.checkpoint; c != nil {
		order = schema.NewOrder(c.Incarnation, c.Position.Epoch, c.Position.Commit, math.MaxUint32)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	unique := make([]byte, 16)
	if _, err := rand.Read(unique); err != nil {
		return nil, fmt.Errorf("making the decision's id: %w", err)
	}
	rule := "decision." + d.o.Decision.String()
	return &schema.Event{
		Header: schema.Header{
			EventID: d.ids.EventID(schema.EventKey{
				Incarnation: order.Incarnation(), Table: "lethe.decision", PK: schema.CanonicalKey(nil, id[:], []byte(now.Format(time.RFC3339Nano)), unique),
				Op: uint8(capture.OpMessage), Rule: rule,
			}),
			Order: order, SubjectRef: subject, CaseID: id, Source: d.cfg.Name, CommittedAt: now, DetectedAt: now, Rule: rule,
			ConfigDigest: d.cfg.SourceDigest(),
		},
		Body: &schema.CaseDecision{
			Decision: d.o.Decision, Replica: of.replica, Reason: d.o.Reason, DecidedBy: d.o.By, DecidedAt: now,
		},
		CRMKey: key,
	}, nil
}

// find asks the replicas for the subject of a case. One that does not answer is no fault while another one knows it.
func (d *decider) find(ctx context.Context, id schema.CaseID) (key []byte, err error) {
	var failed error
	for _, name := range ReplicaNames(d.cfg) {
		var found bool
		err := withDesk(ctx, d.cfg, d.cfg.Replicas[name], func(desk desk) (err error) {
			key, found, err = desk.FindCase(ctx, id, d.ring.Seal())
			return err
		})
		if err == nil && found {
			return key, nil
		}
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return nil, fmt.Errorf("looking for case %s: %w", id, failed)
	}
	return nil, fmt.Errorf("no replica has case %s open or proven: `lethe cases` lists them", id)
}

// waitPause is between two looks at what became of a decision.
const waitPause = 200 * time.Millisecond

// errNotCarriedOut is the error of a wait that ended first.
var errNotCarriedOut = errors.New("not every replica has carried it out yet; it is in the log and will be")

func (d *decider) wait(ctx context.Context, events []*schema.Event, out []Decided) error {
	replicas := make([][]*config.Replica, len(events))
	for i, ev := range events {
		var err error
		if replicas[i], err = chosen(d.cfg, ev.Body.(*schema.CaseDecision).Replica); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Wait)
	defer cancel()
	tick := time.NewTicker(waitPause)
	defer tick.Stop()
	for {
		open := 0
		for i, ev := range events {
			for _, r := range replicas[i] {
				if out[i].Outcomes[r.Name] != "" {
					continue
				}
				err := withDesk(ctx, d.cfg, r, func(desk desk) error {
					outcome, err := desk.DecisionOutcome(ctx, ev.EventID)
					if outcome != "" {
						out[i].Outcomes[r.Name] = outcome
					}
					return err
				})
				if err != nil && ctx.Err() == nil && !IsUnreachable(err) {
					return err
				}
				if out[i].Outcomes[r.Name] == "" {
					open++
				}
			}
		}
		if open == 0 {
			return outcomeError(out)
		}
		select {
		case <-ctx.Done():
			return errNotCarriedOut
		case <-tick.C:
		}
	}
}

// outcomeError tells of decisions that changed nothing anywhere.
func outcomeError(out []Decided) error {
	var errs []error
	for i := range out {
		done := slices.ContainsFunc(mapValues(out[i].Outcomes), func(o string) bool { return o == decisionDone })
		if !done {
			errs = append(errs, fmt.Errorf("case %s: no replica could carry it out", out[i].Case))
		}
	}
	return errors.Join(errs...)
}

func mapValues(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

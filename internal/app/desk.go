package app

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"lethe/capture"
	"lethe/capture/checkpoint"
	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// errNoReplica names the replicas that there are.
func errNoReplica(cfg *config.Config, name string) error {
	return &UsageError{fmt.Errorf("the config has no replica %q: want %s", name, strings.Join(ReplicaNames(cfg), ", "))}
}

// chosen returns the named replica, all of them where name is empty.
func chosen(cfg *config.Config, name string) ([]*config.Replica, error) {
	if name != "" && cfg.Replicas[name] == nil {
		return nil, errNoReplica(cfg, name)
	}
	var out []*config.Replica
	for _, n := range ReplicaNames(cfg) {
		if name == "" || n == name {
			out = append(out, cfg.Replicas[n])
		}
	}
	return out, nil
}

// eachDesk asks replicas one after the other. One that does not answer keeps nobody from asking the others: the error
// joins what went wrong.
func eachDesk(ctx context.Context, cfg *config.Config, name string, f func(replica string, d desk) error) error {
	list, err := chosen(cfg, name)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		errs = append(errs, withDesk(ctx, cfg, r, func(d desk) error { return f(r.Name, d) }))
	}
	return errors.Join(errs...)
}

// CaseInfo is one case in one replica.
type CaseInfo struct {
	Case      string    `json:"case"`
	Replica   string    `json:"replica"`
	State     string    `json:"state"`
	Wait      string    `json:"wait"`
	Receipt   string    `json:"receipt,omitempty"` // state of the effective receipt
	Since     time.Time `json:"since"`
	Due       time.Time `json:"due,omitzero"`
	Overdue   bool      `json:"overdue,omitempty"` // a person should have decided about a row by then
	Attempts  int       `json:"attempts"`
	ErrorCode string    `json:"error_code,omitempty"`
	Run       string    `json:"run,omitempty"` // the pass that found it
	SourceInfo
}

// SourceInfo is what the source was found to say about a case. Times are zero where they are not known.
type SourceInfo struct {
	States     []string  `json:"source_states"` // complete_at_source, incomplete_at_source, revived_at_source, unauthorised_at_source, gate_error
	Missing    []string  `json:"source_missing,omitempty"`
	Gate       string    `json:"gate,omitempty"` // waiting, hold, proceed; satisfied or failed where it decides nothing
	GateChecks []string  `json:"gate_checks,omitempty"`
	Requested  string    `json:"requested"` // yes, no, unknown
	ReceivedAt time.Time `json:"received_at,omitzero"`
	LegalDueAt time.Time `json:"legal_due_at,omitzero"`
	CheckedAt  time.Time `json:"source_checked_at,omitzero"`
	Overdue    bool      `json:"overdue"` // the legal time is over and the erasure not proven
}

func sourceInfo(c *ledger.Case, now time.Time) SourceInfo {
	v := &c.Source
	info := SourceInfo{
		States: v.States, Missing: v.Missing, Gate: v.Gate, GateChecks: v.GateChecks, Requested: v.Requested, ReceivedAt: utcTime(v.ReceivedAt),
		LegalDueAt: utcTime(v.LegalDueAt), CheckedAt: utcTime(v.CheckedAt),
	}
	if info.States == nil {
		info.States = []string{}
	}
	if info.Requested == "" {
		info.Requested = "unknown"
	}
	info.Overdue = !v.LegalDueAt.IsZero() && now.After(v.LegalDueAt) && c.State != ledger.PendingVerified && c.State != "cancelled"
	return info
}

// utcTime leaves what is unknown zero.
func utcTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// Cases lists erasures by case, then replica, the newest cases first. What could be read is returned with an error too.
func Cases(ctx context.Context, cfg *config.Config, replica string, openOnly bool, limit int) ([]CaseInfo, error) {
	out := []CaseInfo{}
	newest := map[string]time.Time{}
	err := eachDesk(ctx, cfg, replica, func(name string, d desk) error {
		list, err := d.Cases(ctx, openOnly, limit)
		for i := range list {
			c := &list[i]
			id := c.ID.String()
			if c.Since.After(newest[id]) {
				newest[id] = c.Since
			}
			out = append(out, CaseInfo{
				Case: id, Replica: name, State: c.State, Wait: c.Wait, Receipt: c.Receipt, Since: c.Since.UTC(), Due: c.Due.UTC(), Overdue: c.Overdue, Attempts: c.Attempts,
				ErrorCode: c.ErrorCode, Run: c.Run, SourceInfo: sourceInfo(c, time.Now()),
			})
			if c.Due.IsZero() {
				out[len(out)-1].Due = time.Time{}
			}
		}
		return err
	})
	slices.SortStableFunc(out, func(a, b CaseInfo) int {
		if n := newest[b.Case].Compare(newest[a.Case]); n != 0 {
			return n
		}
		if n := strings.Compare(a.Case, b.Case); n != 0 {
			return n
		}
		return strings.Compare(a.Replica, b.Replica)
	})
	return out, err
}

// actor is what decisions are recorded under: a role or a pseudonym. A space or an @ would be a person's name or address.
var actor = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$`)

// CheckActor refuses what looks like a person's name or address.
func CheckActor(by string) error {
	if by == ledger.GateDecider {
		return &UsageError{errors.New("--by gate: that is the name under which the gate decides by itself; give your own role or pseudonym")}
	}
	if !actor.MatchString(by) {
		return &UsageError{errors.New("--by is kept for ever beside what was decided: give a role or a pseudonym (letters, digits and _ . : -), " +
			"never a person's name or e-mail address")}
	}
	return nil
}

// Pause holds a replica, Resume lets it go on.
func Pause(ctx context.Context, cfg *config.Config, replica, by string) error {
	if err := CheckActor(by); err != nil {
		return err
	}
	if cfg.Replicas[replica] == nil {
		return errNoReplica(cfg, replica)
	}
	return eachDesk(ctx, cfg, replica, func(_ string, d desk) error { return d.Pause(ctx, by) })
}

// Resume lets a paused replica go on. by may be empty; else it is recorded.
func Resume(ctx context.Context, cfg *config.Config, replica, by string) error {
	if by != "" {
		if err := CheckActor(by); err != nil {
			return err
		}
	}
	if cfg.Replicas[replica] == nil {
		return errNoReplica(cfg, replica)
	}
	return eachDesk(ctx, cfg, replica, func(_ string, d desk) error { return d.Resume(ctx, by) })
}

// DeadLetter is a parked event.
type DeadLetter struct {
	Replica   string    `json:"replica"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	EventID   string    `json:"event_id,omitempty"` // empty where the bytes could not be decoded
	Code      string    `json:"code"`
	Tries     int       `json:"tries"`
	Want      string    `json:"want,omitempty"` // replay or discard, until it is done
	ParkedAt  time.Time `json:"parked_at"`
	DoneAt    time.Time `json:"done_at,omitzero"`
	Outcome   string    `json:"outcome,omitempty"`
}

// DeadLetters lists parked events; done includes those that were replayed or discarded.
func DeadLetters(ctx context.Context, cfg *config.Config, replica string, done bool, limit int) ([]DeadLetter, error) {
	out := []DeadLetter{}
	err := eachDesk(ctx, cfg, replica, func(name string, d desk) error {
		list, err := d.Parked(ctx, done, limit)
		for i := range list {
			p := &list[i]
			l := DeadLetter{
				Replica: name, Partition: p.Partition, Offset: p.Offset, Code: p.Code, Tries: p.Tries, Want: p.Want, ParkedAt: p.ParkedAt.UTC(),
				Outcome: p.Outcome,
			}
			if !p.DoneAt.IsZero() {
				l.DoneAt = p.DoneAt.UTC()
			}
			if (p.EventID != schema.EventID{}) {
				l.EventID = p.EventID.String()
			}
			out = append(out, l)
		}
		return err
	})
	return out, err
}

// Place is a record of the events topic.
type Place struct {
	Partition int32
	Offset    int64
}

// SettleDeadLetters asks the sink of a replica to replay parked events, or to leave them away for good.
func SettleDeadLetters(ctx context.Context, cfg *config.Config, replica string, places []Place, discard bool, by string) error {
	if err := CheckActor(by); err != nil {
		return err
	}
	if cfg.Replicas[replica] == nil {
		return errNoReplica(cfg, replica)
	}
	return eachDesk(ctx, cfg, replica, func(_ string, d desk) error {
		settle := d.ReplayParked
		if discard {
			settle = d.DiscardParked
		}
		for _, p := range places {
			if err := settle(ctx, p.Partition, p.Offset, by); err != nil {
				return err
			}
		}
		return nil
	})
}

// ReplicaGap is a gap as one replica knows it.
type ReplicaGap struct {
	Replica  string    `json:"replica"`
	ID       string    `json:"id"`
	Cause    string    `json:"cause"`
	OpenedAt time.Time `json:"opened_at"`
	ClosedAt time.Time `json:"closed_at,omitzero"`
	Known    int       `json:"partitions"`        // of the replica that know of it
	Closed   int       `json:"partitions_closed"` // those of them in which it is closed
}

// GapList is what capture and the replicas know of gaps.
type GapList struct {
	Capture  []GapInfo    `json:"capture"`
	Replicas []ReplicaGap `json:"replicas"`
}

// Gaps lists the gaps of the source's log. What could be read is returned with an error too.
func Gaps(ctx context.Context, cfg *config.Config) (*GapList, error) {
	list := &GapList{Capture: []GapInfo{}, Replicas: []ReplicaGap{}}
	k := readKafka(ctx, cfg)
	list.Capture = append(list.Capture, k.Gaps...)
	err := eachDesk(ctx, cfg, "", func(name string, d desk) error {
		gaps, err := d.Gaps(ctx)
		for _, g := range gaps {
			r := ReplicaGap{Replica: name, ID: g.ID, Cause: g.Cause, OpenedAt: g.OpenedAt.UTC(), Known: g.Known, Closed: g.Closed}
			if !g.ClosedAt.IsZero() {
				r.ClosedAt = g.ClosedAt.UTC()
			}
			list.Replicas = append(list.Replicas, r)
		}
		return err
	})
	return list, errors.Join(k.err, err)
}

// ResumeGap lets capture go on although a part of the log is lost: from where the slot stands, with a raised incarnation.
// The gap stays open.
func ResumeGap(ctx context.Context, cfg *config.Config) (*capture.Checkpoint, error) {
	conn, err := connectKafka(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.CheckConnect(ctx); err != nil {
		return nil, err
	}
	source, err := openSource(cfg)
	if err != nil {
		return nil, err
	}
	c, err := capture.ResumeGap(ctx, checkpoint.New(checkpoint.Options{Conn: conn, Source: cfg.Name}), source)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return c, errors.Join(err, source.Close(bound))
}

// Plan says what erasing one person would touch in each replica. What could be read is returned with an error too.
func Plan(ctx context.Context, cfg *config.Config, replica string, key []string) ([]*ReplicaPlan, error) {
	if n := len(cfg.Source.Subject.Key); len(key) != n {
		return nil, &UsageError{fmt.Errorf("the CRM key has %d parts (%s): give them as so many arguments, not %d",
			n, strings.Join(cfg.Source.Subject.Key, ", "), len(key))}
	}
	out := []*ReplicaPlan{}
	err := eachDesk(ctx, cfg, replica, func(_ string, d desk) error {
		p, err := d.Plan(ctx, key)
		if err == nil {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// Uninstall prints what takes away everything that setup made: statements for psql, in order, for their owners to read
// and run. A source that does not answer is said in a comment, and in the error.
func Uninstall(ctx context.Context, cfg *config.Config) (string, error) {
	var b strings.Builder
	b.WriteString("-- Stop every `lethe run` first.\n\n-- source: as the owner of the mapped tables\n")
	failed := uninstallSource(ctx, cfg, &b)
	for _, name := range ReplicaNames(cfg) {
		server, err := replicaOf(cfg, cfg.Replicas[name])
		if err != nil {
			continue // a later version's, in which nothing was set up
		}
		fmt.Fprintf(&b, "\n-- replica %s: as the owner of Lethe's tables\n%s", name, server.uninstall())
		b.WriteString(server.dropLogin())
	}
	conn, err := connectKafka(cfg)
	if err != nil {
		return b.String(), errors.Join(failed, err)
	}
	defer conn.Close()
	b.WriteString("\n-- Kafka: the events are what a restored replica is brought up to date from\n")
	for _, topic := range []string{conn.EventsTopic(), conn.CheckpointsTopic(), conn.ReceiptsTopic(), conn.DeadLettersTopic()} {
		fmt.Fprintf(&b, "-- kafka-topics.sh --bootstrap-server %s --delete --topic %s\n", strings.Join(conn.Brokers(), ","), topic)
	}
	return b.String(), failed
}

func uninstallSource(ctx context.Context, cfg *config.Config, b *strings.Builder) error {
	server, err := sourceOf(cfg)
	var list []string
	if err == nil {
		list, err = server.uninstall(ctx)
	}
	for _, sql := range list {
		b.WriteString(sql)
		if !strings.HasPrefix(sql, "--") {
			b.WriteByte(';')
		}
		b.WriteByte('\n')
	}
	if err != nil {
		err = fmt.Errorf("source: %w", err)
		b.WriteString("-- It could not be asked what there is: run this again when it answers.\n")
	}
	if server != nil {
		b.WriteString(server.dropLogin())
	}
	return err
}

package rules

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// NoticeKind is something that a person should know of and that makes no event.
type NoticeKind uint8

// The kinds of notices.
const (
	// NoticeDeletedSubject: a row of the subject's table was deleted where on_delete is alert.
	NoticeDeletedSubject NoticeKind = iota
	// NoticeRowOfNobody: a row would have meant something, but a column of its CRM key is NULL.
	NoticeRowOfNobody
	// NoticeSubjectKeyChanged: the CRM gave a subject another key. Copies that know the old key are no longer reached.
	NoticeSubjectKeyChanged
	// NoticeHistoryNotGranted: an UPDATE in a consent history would have given or prolonged a permission.
	NoticeHistoryNotGranted
	// NoticeAsOfMissing: a consent in a history has no claimed time.
	NoticeAsOfMissing
	// NoticeAsOfFuture: a consent claims a time after its own commit, which was taken instead.
	NoticeAsOfFuture
	// NoticeScopeNull: the old image of a consent names no purpose or channel, so nothing was ever said of it.
	NoticeScopeNull
	// NoticeContactUnread: a contact point or a name is there, and no rule of normalisation can read it. It finds nobody.
	NoticeContactUnread
	// NoticeMergeUndone: a row does not join two subjects any more that it joined before.
	NoticeMergeUndone
	noticeKinds
	// NoticeNoHeartbeat: a logical message with our prefix is no heartbeat: somebody else wrote it. It belongs to no table.
	NoticeNoHeartbeat
)

func (k NoticeKind) String() string {
	switch k {
	case NoticeDeletedSubject:
		return "deleted_subject_alert"
	case NoticeRowOfNobody:
		return "row_of_nobody"
	case NoticeSubjectKeyChanged:
		return "subject_key_changed"
	case NoticeHistoryNotGranted:
		return "history_update_not_granted"
	case NoticeAsOfMissing:
		return "as_of_missing"
	case NoticeAsOfFuture:
		return "as_of_future"
	case NoticeScopeNull:
		return "consent_scope_null"
	case NoticeContactUnread:
		return "contact_point_unread"
	case NoticeMergeUndone:
		return "merge_undone"
	case NoticeNoHeartbeat:
		return "message_is_no_heartbeat"
	case noticeKinds:
	}
	return "unknown"
}

// Notice is how often something was noticed in one table since the Engine was made.
type Notice struct {
	Kind  NoticeKind
	Table string
	Count uint64
}

// notices counts. The tables are known beforehand, so counting takes no lock.
type notices struct {
	tables   map[string]*[noticeKinds]atomic.Uint64
	messages atomic.Uint64 // of NoticeNoHeartbeat
}

var noticesDesc = prometheus.NewDesc("lethe_rule_notices_total",
	"Row changes that made no event and that a person should know of.", []string{"kind", "table"}, nil)

func (n *notices) init(plans map[string]*plan) {
	n.tables = make(map[string]*[noticeKinds]atomic.Uint64, len(plans))
	for name := range plans {
		n.tables[name] = new([noticeKinds]atomic.Uint64)
	}
}

func (n *notices) count(k NoticeKind, table string) { n.tables[table][k].Add(1) }

// Notices returns what was noticed so far, by table and kind; what never happened is left out. Any goroutine may call it.
func (e *Engine) Notices() []Notice {
	var all []Notice
	for table, counts := range e.notices.tables {
		for k := range counts {
			if count := counts[k].Load(); count > 0 {
				all = append(all, Notice{Kind: NoticeKind(k), Table: table, Count: count})
			}
		}
	}
	if count := e.notices.messages.Load(); count > 0 {
		all = append(all, Notice{Kind: NoticeNoHeartbeat, Count: count})
	}
	slices.SortFunc(all, func(a, b Notice) int {
		if c := strings.Compare(a.Table, b.Table); c != 0 {
			return c
		}
		return int(a.Kind) - int(b.Kind)
	})
	return all
}

// Describe implements prometheus.Collector.
func (n *notices) Describe(ch chan<- *prometheus.Desc) { ch <- noticesDesc }

// Collect implements prometheus.Collector.
func (n *notices) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(noticesDesc, prometheus.CounterValue, float64(n.messages.Load()), NoticeNoHeartbeat.String(), "")
	for table, counts := range n.tables {
		for k := range counts {
			ch <- prometheus.MustNewConstMetric(noticesDesc, prometheus.CounterValue,
				float64(counts[k].Load()), NoticeKind(k).String(), table)
		}
	}
}

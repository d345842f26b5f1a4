package mysql

import "lethe/sinks/ledger"

// Finding is one thing that Check saw; see ledger.Finding, whose codes it has beside those here.
type Finding = ledger.Finding

// More codes of findings, of MySQL and MariaDB alone.
const (
	CodeEngine        = "table_engine"      // a mapped table is not transactional
	CodeHistory       = "table_history"     // a mapped table keeps old versions of its rows
	CodeServerVersion = "server_version"    // the server is too old
	CodeStandby       = "server_is_standby" // the login leads to a server that takes no writes
	CodeDigest        = "mapping_digest"    // another mapping is the active one
	CodeLogin         = "login_missing"     // the run role, or that of the read-back, does not exist
	CodeUnreadable    = "grants_unreadable" // the login may not see what another one is allowed
)

// Package config is the format of Lethe's configuration file: types, defaults, loading and validation. It imports nothing
// else of Lethe.
package config

import "time"

// Config is a whole file. Load returns it complete: defaults filled in, secrets read, every name checked for form.
type Config struct {
	Version  int
	Name     string // part of every id: never changed
	Keys     Keys
	Locale   *Locale
	Kafka    Kafka
	Source   Source
	Replicas map[string]*Replica
	Ledger   *Ledger // later version
	HTTP     HTTP

	file  string         // name for messages
	lines map[string]int // YAML path → line, of everything in the file
}

// Keys says where the keysets are.
type Keys struct{ Dir string }

// Locale steers the normalising of phone numbers: a number that names no country is tried in these regions (ISO 3166-1), in this order.
type Locale struct {
	DefaultRegion string
	TryRegions    []string
}

// Regions are the regions to try; none without a locale.
func (l *Locale) Regions() []string {
	if l == nil {
		return nil
	}
	return append([]string{l.DefaultRegion}, l.TryRegions...)
}

// Kafka is the connection to the cluster and the shape of Lethe's topics.
type Kafka struct {
	Brokers           []string
	TopicPrefix       string // default lethe
	Partitions        int    // of <prefix>.events; default 12; fixed by contract
	ReplicationFactor int    // default 3
	TLS               *TLS
	SASL              *SASL
	SchemaRegistry    *SchemaRegistry // later version
	// Embedded starts the in-process broker of the demo instead; run refuses it.
	Embedded bool
}

// TLS of a client connection.
type TLS struct {
	CAFile   string
	CertFile string
	KeyFile  string
}

// SASL of a client connection: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
type SASL struct {
	Mechanism string
	Username  string
	Password  Secret
}

// SchemaRegistry is a Confluent-compatible registry.
type SchemaRegistry struct{ URL string }

// Source is the primary database. Exactly one of Postgres and MySQL is set.
type Source struct {
	Postgres *PostgresSource
	MySQL    *MySQLSource
	Subject  Subject
	Request  *Request
	Erased   Erased
	Tables   map[string]*Table // by schema.table
	Gate     *Gate
	Pass     Pass
	// Heartbeat is the interval of the messages through the source's log; default 5s.
	Heartbeat time.Duration
}

// Pass is how the source's present state is read beside its log.
type Pass struct {
	Every         time.Duration // between the beginnings of two passes; 0: none on a schedule; default 30d
	Chunk         int           // rows read at a time; default 1000
	RowsPerSecond int           // 0: as fast as it goes, the default
}

// PostgresSource is a PostgreSQL primary.
type PostgresSource struct {
	DSN            string // without password
	Password       Secret
	Slot           string // default lethe
	Publication    string // default lethe
	MaxRetainedWAL int64  // bytes; Lethe's alarm below max_slot_wal_keep_size; default 10GB
}

// Subject says where the people are.
type Subject struct {
	Table    string
	Key      []string // the CRM key; composite keys have several columns
	OnDelete string   // erasure | alert, required
}

// Request is where the CRM notes that somebody asked.
type Request struct {
	Table      string
	When       string
	ReceivedAt string   // column
	Subject    []string // columns that hold the CRM key; default as in Table.Subject
}

// Erased says how an erasure is recognised.
type Erased struct {
	When   string // expr over the row of the subject's table; opens a case
	Marker *Marker
	Window time.Duration // from the opening of a case to the read-back of the source where no marker comes first; 0: 15m
	Phase2 string        // automatic (default) | on_decision
	Ground string        // W3C DPV term
}

// Marker is the row by which the CRM's procedure says that it has ended.
type Marker struct {
	Table   string
	When    string
	Subject []string // columns that hold the CRM key; default as in Table.Subject
}

// Table is one mapped table of the source.
type Table struct {
	Name         string
	Subject      []string // the columns that hold the CRM key; default: those of the same names as source.subject.key
	Erase        []string // columns; EraseRow: the row itself goes
	EraseRow     bool
	ErasedValues []string
	State        map[string]any // column → what the CRM's procedure sets it to: string, int64, float64, bool or nil
	Optional     bool
	ContactPoint *ContactPoint
	Identity     *Identity // of the subject's own table only
	Merged       *Merged
	Objection    *Objection
	Restricted   *Restricted
	Consent      *Consent
}

// ContactPoint says that rows of a table are contact points.
type ContactPoint struct {
	Kind   string   // email | phone | postal
	Value  []string // columns; several are the lines of one postal address
	Region string   // column with the number's region; kind phone only
	Ignore []string // placeholders that are nobody's
	Past   bool     // of a table that holds what was valid before
	// Key is the column, or the columns, by which consents refer to a row (bound_to). Empty: those of the primary key without the CRM key, as far
	// as the log tells them; it does not where PostgreSQL sends whole rows.
	Key []string
}

// Identity is what the subject's own row says of who it is.
type Identity struct {
	Name      []string // columns, the parts of one name
	BirthDate string   // column; empty: not mapped
}

// Merged says which rows join two subjects of the CRM. Survivor and Absorbed hold CRM keys, in the order of source.subject.key.
type Merged struct {
	Survivor []string
	Absorbed []string
	When     string // expr over the row; empty: every row with both keys
}

// Objection is Art. 21: When true → raised, false → lifted.
type Objection struct {
	When  string
	Scope string
}

// Restricted is Art. 18: by expression, by a date column, or both.
type Restricted struct {
	When  string
	Until string // column
}

// Consent says how a row becomes a ConsentChange.
type Consent struct {
	Kind       string // current | history, required
	AsOf       string // column; required with history
	Purpose    Mapped
	Channel    Mapped
	State      Mapped
	LegalBasis Mapped
	ValidUntil string // column
	BoundTo    *BoundTo
	Evidence   string // column; sealed
	Method     Mapped // how it was indicated; zero: not mapped
	Notice     Mapped // the notice that was shown; zero: not mapped
	Actor      Mapped // who indicated it, a role and never a name; zero: not mapped
}

// Mapped is a column whose values pass through a closed map, or a constant.
type Mapped struct {
	Column string
	Map    map[string]string
	Value  string // constant, instead of column and map
}

// Given reports whether the file maps it.
func (m *Mapped) Given() bool { return m.Column != "" || m.Value != "" }

// BoundTo is the contact point that a consent is about.
type BoundTo struct {
	Column string
	RowsOf map[string]string // channel → table
}

// Gate holds phase 2 until the source allows it.
type Gate struct {
	Mode    string
	Require map[string]string
}

// Asked reports whether there is anything to ask before phase 2: the gate's conditions, or whether there was a request.
func (s *Source) Asked() bool {
	if s.Gate != nil {
		return s.Gate.Mode != GateOff && (len(s.Gate.Require) > 0 || s.Request != nil)
	}
	return s.Request != nil
}

// Enforced reports whether what the gate says decides. Without a gate the request alone does: replicas that need the contract
// wait for it.
func (s *Source) Enforced() bool { return s.Asked() && (s.Gate == nil || s.Gate.Mode == GateEnforce) }

// The values of Gate.Mode.
const (
	GateOff     = "off"
	GateObserve = "observe"
	GateEnforce = "enforce"
)

// Replica is one downstream database.
type Replica struct {
	Name      string
	Recipient Recipient
	Mode      string // observe | suppress | erase, required
	Needs     string // contract: the gate may hold phase 2
	// Gated is derived: phase 2 waits for the gate, because the replica needs the contract and the source's gate is enforced.
	Gated     bool
	Postgres  *PostgresServer
	MySQL     *MySQLServer
	Person    Person
	Find      *Find // nil: people are found by person.crm_key alone; later version
	Review    Review
	Suppress  []Action
	Erase     Erase
	Hold      map[string]Hold
	Consent   []ConsentAction
	Objection []ObjectionAction
	// Restricted sets columns to the Art. 18 state.
	Restricted *RestrictedAction
	Audience   string
	Breaker    Breaker
	Guard      *Guard // later version
	// Residuals says for how long erased data lives on where nobody can reach it: wal, binlog, backup, dead_tuples, log.
	Residuals map[string]Period
	Recheck   Period // how long subjects without a row are looked up again; default 90d
}

// PostgresServer is a PostgreSQL replica.
type PostgresServer struct {
	DSN      string
	Password Secret
	Schema   string // of Lethe's own tables; default lethe
	Verify   *Login // another, read-only login for reading back; nil: the same
}

// Login is another way into the same database.
type Login struct {
	DSN      string
	Password Secret
	CAFile   string // of a MySQL or MariaDB server; see MySQLSource
}

// VerifyServer is what reading back connects to: the login of Verify where there is one, else p itself.
func (p *PostgresServer) VerifyServer() *PostgresServer {
	if p.Verify == nil {
		return p
	}
	return &PostgresServer{DSN: p.Verify.DSN, Password: p.Verify.Password, Schema: p.Schema}
}

// Recipient is the recipient in the sense of Art. 19.
type Recipient struct {
	Name string
	Role string // controller | processor
}

// Person is the table that holds one row a person.
type Person struct {
	Table  string
	Key    string
	CRMKey []string // the columns that hold the CRM key, in the order of source.subject.key; empty: found by match keys (later version)
}

// Find says by which values of the replica people are found: each is a table.column of person.table, or of a table of which erase.tables or
// hold says by which column its rows belong to a person.
type Find struct {
	Email     []string
	Phone     []string
	Name      []string      // the parts of one name, of one table
	BirthDate string        // of the table of Name; empty: none
	Postal    []string      // the parts of one address, of one table
	Changed   []string      // columns that grow when a row changes, at most one of a table; a table without one is scanned whole
	Scan      time.Duration // between two scans for changed rows; default 1h
	Regions   []string      // of the locale: they decide what key a phone number has
}

// Review is how undecided matches are put before a person.
type Review struct {
	Due time.Duration // until when each is to be decided; default 7d
}

// Action is one suppress action: exactly one of Set and Insert.
type Action struct {
	Set    map[string]map[string]Value // table → column → value
	Insert *Insert
}

// Insert puts a row, for example a do-not-contact entry.
type Insert struct {
	Table  string
	Values map[string]Value
}

// Value is what a column becomes. Exactly one form is in force, by Kind.
type Value struct {
	Kind     string // null | const | token | truncate | generalise | key | now | permitted | reconsent_due | restricted | objected
	Const    any    // string, int64, float64, bool
	Token    string // with {random}
	Truncate int    // characters kept
	// Generalise: year | month for dates, else a number to round down to.
	Generalise string
}

// Erase is phase 2.
type Erase struct {
	CoolOff time.Duration // default 24h
	Tables  map[string]*EraseTable
}

// EraseTable is what phase 2 does to the person's rows of one table.
type EraseTable struct {
	By     string // column that refers to person.key; empty: the person's table itself
	Set    map[string]Value
	JSON   map[string]map[string]Value // column → path → value
	Delete bool
	Unlink bool // By becomes NULL: the row is shared
}

// Hold restricts instead of erasing until a date (Art. 17(3)).
type Hold struct {
	By    string // column that refers to person.key; default: the column of the same name
	Basis string // legal_obligation | legal_claims | public_health | archiving | freedom_of_expression
	For   Period
	From  string // table.column, of the held table
}

// ConsentAction sets columns to the fold of one purpose and channel.
type ConsentAction struct {
	Purpose string
	Channel string
	Set     map[string]map[string]Value
}

// ObjectionAction sets columns to the state of an objection's scope.
type ObjectionAction struct {
	Scope string
	Set   map[string]map[string]Value
}

// RestrictedAction sets columns to the state of the restriction.
type RestrictedAction struct {
	Set map[string]map[string]Value
}

// Breaker bounds how many new cases may go to phase 2 by themselves within the window.
type Breaker struct {
	NewCases int           // default 20
	Window   time.Duration // default 10m
}

// Guard keeps an erased person from coming back.
type Guard struct {
	TailLog bool
	Sweep   time.Duration
	Keep    Period
}

// Ledger is where cases and proofs are kept.
type Ledger struct {
	SQLite   string
	Postgres *PostgresServer
	Deadline Period // of a case, from the receipt of the request; default 1mo
}

// HTTP is the admin listener.
type HTTP struct {
	Listen string // default 127.0.0.1:8480
}

package config

import "time"

func (c *Config) decodeLocale(it item) {
	c.Locale = &Locale{}
	it.fields(map[string]func(item){
		"default_region": reader(&c.Locale.DefaultRegion, parseRegion),
		"try_regions":    texts(&c.Locale.TryRegions, parseRegion),
	}, "default_region")
}

func (c *Config) decodeKafka(it item) {
	k := &c.Kafka
	it.fields(map[string]func(item){
		"brokers":            texts(&k.Brokers, parseHostPort),
		"topic_prefix":       reader(&k.TopicPrefix, parseTopicPrefix),
		"partitions":         integer(&k.Partitions, 1, 1000),
		"replication_factor": integer(&k.ReplicationFactor, 1, 100),
		"tls": func(it item) {
			k.TLS = &TLS{}
			it.fields(map[string]func(item){
				"ca_file":   it.d.file(&k.TLS.CAFile),
				"cert_file": it.d.file(&k.TLS.CertFile),
				"key_file":  it.d.file(&k.TLS.KeyFile),
			})
			if (k.TLS.CertFile == "") != (k.TLS.KeyFile == "") {
				it.fault("give both or none", "cert_file and key_file belong together")
			}
		},
		"sasl": func(it item) {
			k.SASL = &SASL{}
			password, passwordFile := it.d.secret(&k.SASL.Password)
			it.fields(map[string]func(item){
				"mechanism":     enum(&k.SASL.Mechanism, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
				"username":      text(&k.SASL.Username),
				"password":      password,
				"password_file": passwordFile,
			}, "mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", "username")
			it.needOneOf("password_file", "password")
		},
		"schema_registry": func(it item) {
			k.SchemaRegistry = &SchemaRegistry{}
			it.fields(map[string]func(item){"url": reader(&k.SchemaRegistry.URL, parseRegistryURL)}, "url")
		},
		"embedded": boolean(&k.Embedded),
	})
	switch {
	case k.Embedded:
		if it.has("brokers") {
			it.fault("remove brokers, or embedded", "the embedded broker and brokers exclude each other")
		}
	case !it.has("brokers"):
		it.missing("brokers", "for example brokers: [kafka-1:9092, kafka-2:9092]")
	}
	if k.SASL != nil && k.SASL.Mechanism == "PLAIN" && k.TLS == nil {
		it.fault("add tls: {} or use SCRAM-SHA-512", "SASL PLAIN without tls sends the password in clear")
	}
}

func (c *Config) decodeLedger(it item) {
	l := &Ledger{Deadline: Period{Months: 1}}
	c.Ledger = l
	it.fields(map[string]func(item){
		"sqlite": it.d.file(&l.SQLite),
		"postgres": func(it item) {
			l.Postgres = &PostgresServer{}
			l.Postgres.decode(it)
		},
		"deadline": period(&l.Deadline),
	})
	it.exactlyOneOf("sqlite", "postgres")
}

// decode reads a PostgreSQL replica's connection.
func (p *PostgresServer) decode(it item) {
	p.Schema = "lethe"
	password, passwordFile := it.d.secret(&p.Password)
	it.fields(map[string]func(item){
		"dsn":           reader(&p.DSN, parsePostgresDSN),
		"password":      password,
		"password_file": passwordFile,
		"schema":        reader(&p.Schema, parseIdentifier),
		"verify": func(it item) {
			p.Verify = &Login{}
			password, passwordFile := it.d.secret(&p.Verify.Password)
			it.fields(map[string]func(item){
				"dsn":           reader(&p.Verify.DSN, parsePostgresDSN),
				"password":      password,
				"password_file": passwordFile,
			}, "dsn: the same database with the login that only reads, for example postgres://lethe_verify@host:5432/database")
		},
	}, "dsn: for example postgres://lethe@host:5432/database?sslmode=verify-full")
}

// has reports whether a section holds a key.
func (it item) has(key string) bool {
	for i := 0; i+1 < len(it.n.Content); i += 2 {
		if it.n.Content[i].Value == key {
			return true
		}
	}
	return false
}

func (it item) given(keys []string) []string {
	var found []string
	for _, key := range keys {
		if it.has(key) {
			found = append(found, key)
		}
	}
	return found
}

func (it item) needOneOf(keys ...string) {
	if len(it.given(keys)) == 0 {
		it.fault("", "needs one of %s", list(keys))
	}
}

func (it item) exactlyOneOf(keys ...string) {
	switch found := it.given(keys); {
	case len(found) == 0:
		it.fault("", "needs one of %s", list(keys))
	case len(found) > 1:
		it.fault("keep one", "%s exclude each other", list(found))
	}
}

// complete fills in the defaults that depend on other parts of the file.
func (c *Config) complete() {
	s := &c.Source
	for name, t := range s.Tables {
		if len(t.Subject) == 0 && t.Merged != nil && name != s.Subject.Table {
			t.Subject = t.Merged.Survivor
		}
		if len(t.Subject) == 0 {
			t.Subject = s.Subject.Key
		}
		if m := s.Erased.Marker; m != nil && m.Table == name && len(m.Subject) == 0 {
			m.Subject = t.Subject
		}
		if r := s.Request; r != nil && r.Table == name && len(r.Subject) == 0 {
			r.Subject = t.Subject
		}
	}
	if m := s.Erased.Marker; m != nil && len(m.Subject) == 0 {
		m.Subject = s.Subject.Key
	}
	if r := s.Request; r != nil && len(r.Subject) == 0 {
		r.Subject = s.Subject.Key
	}
	for _, r := range c.Replicas {
		r.Gated = r.Needs == "contract" && s.Enforced()
		if r.Find != nil {
			r.Find.Regions = c.Locale.Regions()
		}
		for table, h := range r.Hold {
			if h.By == "" {
				h.By = r.Person.Key
				r.Hold[table] = h
			}
		}
	}
}

// Defaults of a replica.
const (
	defaultCoolOff         = 24 * time.Hour
	defaultBreakerCases    = 20
	defaultBreakerWindow   = 10 * time.Minute
	defaultRecheckDays     = 90
	defaultPassEvery       = 30 * 24 * time.Hour
	defaultPassChunk       = 1000
	defaultFindScan        = time.Hour
	defaultReviewDue       = 7 * 24 * time.Hour
	defaultMaxRetainedWAL  = 10 << 30
	defaultSlotPublication = "lethe"
)

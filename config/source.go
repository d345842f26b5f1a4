package config

import (
	"strconv"
	"strings"
)

func (s *Source) decode(it item) {
	s.Tables = make(map[string]*Table)
	s.Pass = Pass{Every: defaultPassEvery, Chunk: defaultPassChunk}
	it.fields(map[string]func(item){
		"postgres": func(it item) {
			s.Postgres = &PostgresSource{}
			s.Postgres.decode(it)
		},
		"mysql": func(it item) {
			s.MySQL = &MySQLSource{}
			s.MySQL.decode(it)
		},
		"subject": func(it item) {
			it.fields(map[string]func(item){
				"table":     reader(&s.Subject.Table, parseSourceTable),
				"key":       columns(&s.Subject.Key),
				"on_delete": enum(&s.Subject.OnDelete, "erasure", "alert"),
			}, "table", "key: the column of the CRM key, or a list of columns",
				"on_delete: erasure: deleting the row is an erasure; alert: it is only reported")
		},
		"request": func(it item) {
			r := &Request{}
			s.Request = r
			it.fields(map[string]func(item){
				"table":       reader(&r.Table, parseSourceTable),
				"when":        text(&r.When),
				"received_at": reader(&r.ReceivedAt, parseColumn),
				"subject":     columns(&r.Subject),
			}, "table", "when", "received_at")
		},
		"erased":    s.Erased.decode,
		"tables":    s.decodeTables,
		"gate":      s.decodeGate,
		"pass":      s.Pass.decode,
		"heartbeat": duration(&s.Heartbeat),
	}, "subject", "erased", "tables")
	it.exactlyOneOf("postgres", "mysql")
	if it.has("heartbeat") && s.Heartbeat <= 0 {
		it.below("heartbeat").fault("leave it at 5s", "must be longer than nothing")
	}
}

func (p *PostgresSource) decode(it item) {
	p.Slot, p.Publication, p.MaxRetainedWAL = defaultSlotPublication, defaultSlotPublication, defaultMaxRetainedWAL
	password, passwordFile := it.d.secret(&p.Password)
	it.fields(map[string]func(item){
		"dsn":              reader(&p.DSN, parsePostgresDSN),
		"password":         password,
		"password_file":    passwordFile,
		"slot":             reader(&p.Slot, parseCode),
		"publication":      reader(&p.Publication, parseIdentifier),
		"max_retained_wal": size(&p.MaxRetainedWAL),
	}, "dsn: for example postgres://lethe@host:5432/crm?sslmode=verify-full")
}

func (e *Erased) decode(it item) {
	e.Phase2 = "automatic"
	it.fields(map[string]func(item){
		"when": text(&e.When),
		"marker": func(it item) {
			m := &Marker{}
			e.Marker = m
			it.fields(map[string]func(item){
				"table":   reader(&m.Table, parseSourceTable),
				"when":    text(&m.When),
				"subject": columns(&m.Subject),
			}, "table", "when")
		},
		"window": duration(&e.Window),
		"phase2": enum(&e.Phase2, "automatic", "on_decision"),
		"ground": reader(&e.Ground, parseGround),
	}, `when: an expression over the row of the subject's table, for example 'status == "E"'`)
}

func (s *Source) decodeTables(it item) {
	it.entries(func(name string, it item) {
		t := &Table{Name: name}
		s.Tables[name] = t
		if _, err := parseSourceTable(name); err != nil {
			it.fault("", "%s", err)
		}
		t.decode(it)
	})
}

func (t *Table) decode(it item) {
	it.fields(map[string]func(item){
		"subject": columns(&t.Subject),
		"erase": func(it item) {
			if s := it.n; s.Value == "row" && len(s.Content) == 0 {
				t.EraseRow = true
				return
			}
			if it.n.Content == nil && !it.null() {
				it.fault("write row, or the list of columns", "must be row or a list of columns")
				return
			}
			texts(&t.Erase, parseColumn)(it)
		},
		"erased_values": func(it item) {
			it.items(func(_ int, it item) {
				if s, ok := it.text(); ok {
					t.ErasedValues = append(t.ErasedValues, s)
				}
			})
		},
		"state": func(it item) {
			t.State = make(map[string]any)
			it.entries(func(column string, it item) {
				it.column(column)
				if v, ok := it.constant(); ok {
					t.State[column] = v
				}
			})
		},
		"optional":      boolean(&t.Optional),
		"contact_point": t.decodeContactPoint,
		"identity":      t.decodeIdentity,
		"merged":        t.decodeMerged,
		"objection": func(it item) {
			t.Objection = &Objection{}
			it.fields(map[string]func(item){
				"when":  text(&t.Objection.When),
				"scope": reader(&t.Objection.Scope, parseCode),
			}, "when: an expression over the row: true is raised, false is lifted", "scope: direct_marketing, profiling, all, or a purpose")
		},
		"restricted": func(it item) {
			t.Restricted = &Restricted{}
			it.fields(map[string]func(item){
				"when":  text(&t.Restricted.When),
				"until": reader(&t.Restricted.Until, parseColumn),
			})
			it.needOneOf("when", "until")
		},
		"consent": func(it item) {
			t.Consent = &Consent{}
			t.Consent.decode(it)
		},
	})
}

// column checks a key that is the name of a column.
func (it item) column(name string) {
	if _, err := parseColumn(name); err != nil {
		it.fault("", "%s", err)
	}
}

func (c *Consent) decode(it item) {
	it.fields(map[string]func(item){
		"kind":        enum(&c.Kind, "current", "history"),
		"as_of":       reader(&c.AsOf, parseColumn),
		"purpose":     c.Purpose.decode(parseCode),
		"channel":     c.Channel.decode(oneOf(channels)),
		"state":       c.State.decode(oneOf(consentStates)),
		"legal_basis": c.LegalBasis.decode(oneOf(legalBases)),
		"valid_until": reader(&c.ValidUntil, parseColumn),
		"bound_to": func(it item) {
			b := &BoundTo{RowsOf: make(map[string]string)}
			c.BoundTo = b
			it.fields(map[string]func(item){
				"column": reader(&b.Column, parseColumn),
				"rows_of": func(it item) {
					it.entries(func(channel string, it item) {
						var table string
						if _, err := oneOf(channels)(channel); err != nil {
							it.fault(nearest(channel, channels), "%s", err)
						}
						reader(&table, parseSourceTable)(it)
						b.RowsOf[channel] = table
					})
				},
			}, "column", "rows_of: channel: table, for each channel")
		},
		"evidence": reader(&c.Evidence, parseColumn),
		"method":   c.Method.decode(parseLabel),
		"notice":   c.Notice.decode(parseLabel),
		"actor":    c.Actor.decode(parseLabel),
	}, "kind: current: one row per purpose, channel and contact point; history: one row per change", "purpose", "channel", "state",
		"legal_basis: without one nothing is ever permitted; a constant will do: legal_basis: consent")
	switch {
	case c.Kind == "history" && !it.has("as_of"):
		it.missing("as_of", "with kind history the rows are ordered by this column")
	case c.Kind == "current" && it.has("as_of"):
		it.below("as_of").fault("remove it, or say kind: history", "belongs to kind history")
	}
}

// oneOf makes the parser of a closed vocabulary.
func oneOf(allowed []string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, a := range allowed {
			if s == a {
				return s, nil
			}
		}
		return "", &vocabularyError{word: s, allowed: allowed}
	}
}

type vocabularyError struct {
	word    string
	allowed []string
}

func (e *vocabularyError) Error() string {
	message := strconv.Quote(e.word) + " is not one of " + strings.Join(e.allowed, ", ")
	if hint := nearest(e.word, e.allowed); hint != "" {
		message += "; " + hint
	}
	return message
}

// decode reads a constant or a column with its closed map.
func (m *Mapped) decode(parse func(string) (string, error)) func(item) {
	return func(it item) {
		if len(it.n.Content) == 0 {
			reader(&m.Value, parse)(it)
			return
		}
		m.Map = make(map[string]string)
		it.fields(map[string]func(item){
			"column": reader(&m.Column, parseColumn),
			"map": func(it item) {
				it.entries(func(from string, it item) {
					var to string
					reader(&to, parse)(it)
					m.Map[from] = to
				})
				if it.n.Content == nil {
					it.fault("list every value of the column", "is empty")
				}
			},
		}, "column", "map: every value of the column, with what it means")
	}
}

func (s *Source) decodeGate(it item) {
	g := &Gate{Require: make(map[string]string)}
	s.Gate = g
	it.fields(map[string]func(item){
		"mode": enum(&g.Mode, "off", "observe", "enforce"),
		"require": func(it item) {
			it.entries(func(name string, it item) {
				var query string
				if _, err := parseCode(name); err != nil {
					it.fault("", "%s", err)
				}
				it.str(&query)
				g.Require[name] = query
			})
		},
	}, "mode: off, observe or enforce", "require: a condition in SQL for each check")
}

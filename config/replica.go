package config

import (
	"strings"

	"gopkg.in/yaml.v3"
)

func (c *Config) decodeReplicas(it item) {
	c.Replicas = make(map[string]*Replica)
	it.entries(func(name string, it item) {
		r := &Replica{Name: name}
		c.Replicas[name] = r
		if _, err := parseCode(name); err != nil {
			it.fault("", "%s", err)
		}
		r.decode(it)
	})
	if it.n.Content == nil {
		it.fault("name at least one", "is empty")
	}
}

func (r *Replica) decode(it item) {
	r.Erase.CoolOff = defaultCoolOff
	r.Breaker = Breaker{NewCases: defaultBreakerCases, Window: defaultBreakerWindow}
	r.Recheck = Period{Days: defaultRecheckDays}
	r.Review.Due = defaultReviewDue
	it.fields(map[string]func(item){
		"recipient": func(it item) {
			it.fields(map[string]func(item){
				"name": text(&r.Recipient.Name),
				"role": enum(&r.Recipient.Role, "controller", "processor"),
			}, "name: who receives the data (GDPR Art. 19)", "role: controller or processor")
		},
		"mode":  enum(&r.Mode, "observe", "suppress", "erase"),
		"needs": enum(&r.Needs, "contract"),
		"postgres": func(it item) {
			r.Postgres = &PostgresServer{}
			r.Postgres.decode(it)
		},
		"mysql": func(it item) {
			r.MySQL = &MySQLServer{}
			r.MySQL.decode(it)
		},
		"person": func(it item) {
			it.fields(map[string]func(item){
				"table":   reader(&r.Person.Table, parseReplicaTable),
				"key":     reader(&r.Person.Key, parseColumn),
				"crm_key": columns(&r.Person.CRMKey),
			}, "table: the table with one row a person", "key: the column that other tables refer to")
		},
		"find": func(it item) {
			r.Find = &Find{Scan: defaultFindScan}
			r.Find.decode(it)
		},
		"review": func(it item) {
			it.fields(map[string]func(item){"due": duration(&r.Review.Due)}, "due")
			if it.has("due") && r.Review.Due <= 0 {
				it.below("due").fault("for example 7d", "must be longer than nothing")
			}
		},
		"suppress":   r.decodeSuppress,
		"erase":      r.Erase.decode,
		"hold":       r.decodeHold,
		"consent":    r.decodeConsent,
		"objection":  r.decodeObjection,
		"restricted": r.decodeRestricted,
		"audience":   text(&r.Audience),
		"breaker": func(it item) {
			it.fields(map[string]func(item){
				"new_cases": integer(&r.Breaker.NewCases, 0, 1_000_000),
				"window":    duration(&r.Breaker.Window),
			}, "new_cases", "window")
			if it.has("window") && r.Breaker.Window <= 0 {
				it.below("window").fault("for example 10m", "must be longer than nothing")
			}
		},
		"guard": func(it item) {
			r.Guard = &Guard{}
			it.fields(map[string]func(item){
				"tail_log": boolean(&r.Guard.TailLog),
				"sweep":    duration(&r.Guard.Sweep),
				"keep":     period(&r.Guard.Keep),
			})
		},
		"residuals": func(it item) {
			r.Residuals = make(map[string]Period)
			it.entries(func(kind string, it item) {
				var p Period
				if _, err := oneOf(residualKinds)(kind); err != nil {
					it.fault("", "%s", err)
				}
				period(&p)(it)
				r.Residuals[kind] = p
			})
		},
		"recheck": period(&r.Recheck),
	}, "recipient: who receives the data (GDPR Art. 19)", "mode: observe, suppress or erase", "person")
	it.exactlyOneOf("postgres", "mysql")
}

func (r *Replica) decodeSuppress(it item) {
	it.items(func(_ int, it item) {
		var a Action
		it.fields(map[string]func(item){
			"set": func(it item) { a.Set = it.tableColumns(forSuppress) },
			"insert": func(it item) {
				a.Insert = &Insert{Values: make(map[string]Value)}
				it.fields(map[string]func(item){
					"table": reader(&a.Insert.Table, parseReplicaTable),
					"values": func(it item) {
						it.entries(func(column string, it item) {
							it.column(column)
							it.value(forInsert, func(v Value) { a.Insert.Values[column] = v })
						})
					},
				}, "table", "values: column: value; the key of the person is $key")
				if !holdsKey(a.Insert.Values) && it.has("values") {
					it.fault("add a column with the value $key", "inserts a row that names no person")
				}
			},
		})
		it.exactlyOneOf("set", "insert")
		r.Suppress = append(r.Suppress, a)
	})
	if it.n.Kind == yaml.SequenceNode && len(it.n.Content) == 0 {
		it.fault("add a set or an insert, or remove the key", "is empty")
	}
}

func holdsKey(values map[string]Value) bool {
	for _, v := range values {
		if v.Kind == "key" {
			return true
		}
	}
	return false
}

// tableColumns reads a set section whose keys are table.column.
func (it item) tableColumns(use valueUse) map[string]map[string]Value {
	set := make(map[string]map[string]Value)
	it.entries(func(name string, it item) {
		table, column, err := splitTableColumn(name)
		if err != nil {
			it.fault("write table.column: value, for example leads.newsletter_optin: false", "%s", err)
			return
		}
		it.value(use, func(v Value) {
			if set[table] == nil {
				set[table] = make(map[string]Value)
			}
			set[table][column] = v
		})
	})
	if it.n.Content == nil {
		it.fault("for example leads.newsletter_optin: false", "is empty")
	}
	return set
}

func (e *Erase) decode(it item) {
	it.fields(map[string]func(item){
		"cool_off": duration(&e.CoolOff),
		"tables": func(it item) {
			e.Tables = make(map[string]*EraseTable)
			it.entries(func(name string, it item) {
				if _, err := parseReplicaTable(name); err != nil {
					it.fault("", "%s", err)
				}
				t := &EraseTable{}
				e.Tables[name] = t
				t.decode(it)
			})
		},
	}, "tables")
}

func (t *EraseTable) decode(it item) {
	it.fields(map[string]func(item){
		"by": reader(&t.By, parseColumn),
		"set": func(it item) {
			t.Set = make(map[string]Value)
			it.entries(func(column string, it item) {
				it.column(column)
				it.value(forErase, func(v Value) { t.Set[column] = v })
			})
		},
		"json":   t.decodeJSON,
		"delete": boolean(&t.Delete),
		"unlink": boolean(&t.Unlink),
	})
	ways := 0
	for _, used := range []bool{len(t.Set)+len(t.JSON) > 0 || it.has("set") || it.has("json"), t.Delete, t.Unlink} {
		if used {
			ways++
		}
	}
	switch {
	case ways == 0:
		it.fault("say set, json, delete: true or unlink: true", "says nothing of what happens to the rows")
	case ways > 1:
		it.fault("keep one", "set (or json), delete and unlink exclude each other")
	}
}

func (t *EraseTable) decodeJSON(it item) {
	t.JSON = make(map[string]map[string]Value)
	it.entries(func(column string, it item) {
		it.column(column)
		t.JSON[column] = make(map[string]Value)
		it.entries(func(path string, it item) {
			for _, key := range strings.Split(path, ".") {
				if key == "" || strings.ContainsAny(key, "\x00") {
					it.fault("", "must be a path of keys with dots between them, for example contact.email")
					break
				}
			}
			it.value(forErase, func(v Value) { t.JSON[column][path] = v })
		})
	})
}

func (r *Replica) decodeHold(it item) {
	r.Hold = make(map[string]Hold)
	it.entries(func(name string, it item) {
		var h Hold
		if _, err := parseReplicaTable(name); err != nil {
			it.fault("", "%s", err)
		}
		it.fields(map[string]func(item){
			"by":    reader(&h.By, parseColumn),
			"basis": enum(&h.Basis, holdBases...),
			"for":   period(&h.For),
			"from":  reader(&h.From, parseTableColumn),
		}, "basis: the ground of Art. 17(3), for example legal_obligation", "for: for example 10y", "from: the column from which the time runs")
		if table, _, err := splitTableColumn(h.From); err == nil && table != name {
			it.below("from").fault("", "must be a column of %s itself", name)
		}
		r.Hold[name] = h
	})
}

func (r *Replica) decodeConsent(it item) {
	it.items(func(_ int, it item) {
		var a ConsentAction
		it.fields(map[string]func(item){
			"purpose": reader(&a.Purpose, parseCode),
			"channel": enum(&a.Channel, channels...),
			"set":     func(it item) { a.Set = it.tableColumns(forConsent) },
		}, "purpose", "channel", "set")
		r.Consent = append(r.Consent, a)
	})
}

func (r *Replica) decodeObjection(it item) {
	it.items(func(_ int, it item) {
		var a ObjectionAction
		it.fields(map[string]func(item){
			"scope": reader(&a.Scope, parseCode),
			"set":   func(it item) { a.Set = it.tableColumns(forObjection) },
		}, "scope", "set")
		r.Objection = append(r.Objection, a)
	})
}

func (r *Replica) decodeRestricted(it item) {
	a := &RestrictedAction{}
	r.Restricted = a
	it.fields(map[string]func(item){
		"set": func(it item) { a.Set = it.tableColumns(forRestricted) },
	}, "set")
}

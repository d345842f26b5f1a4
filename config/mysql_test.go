package config

import "testing"

// TestMySQLDefaults loads a CRM and a replica on MySQL with nothing but what must be given, and with everything.
func TestMySQLDefaults(t *testing.T) {
	c := parseFile(t, "testdata/mysql.yaml")
	if got, want := *c.Source.MySQL, (MySQLSource{
		DSN: "lethe@tcp(crm-db:3306)/crm?tls=true", Password: NewSecret("x"), Heartbeat: "crm.lethe_heartbeat", RequireGTID: true, MaxBinlogLag: 10 << 30,
	}); got != want {
		t.Errorf("source is %+v, want %+v", got, want)
	}
	if got, want := *c.Replicas["plain"].MySQL, (MySQLServer{DSN: "lethe@tcp(mkt-db:3306)/marketing", Prefix: "lethe_"}); got != want {
		t.Errorf("plain is %+v, want %+v", got, want)
	}
	full := c.Replicas["full"].MySQL
	if full.Prefix != "erasure_" || full.CAFile != "ca.pem" {
		t.Errorf("full is %+v", full)
	}
	if got, want := *full.VerifyServer(), (MySQLServer{
		DSN: "lethe_verify@tcp(dwh:3306)/dwh?tls=true&timeout=3s", Password: NewSecret("y"), CAFile: "other.pem", Prefix: "erasure_",
	}); got != want {
		t.Errorf("the verify server is %+v, want %+v", got, want)
	}
	if plain := c.Replicas["plain"].MySQL; plain.VerifyServer() != plain {
		t.Error("without a verify login another server is read")
	}
}

// TestMySQLIsNoPartOfTheMapping moves a replica from one kind of server to another: what is done to whom stays the same.
func TestMySQLIsNoPartOfTheMapping(t *testing.T) {
	c := parseFile(t, "testdata/mysql.yaml")
	r := *c.Replicas["plain"]
	before := r.Digest()
	r.MySQL, r.Postgres = nil, &PostgresServer{DSN: "postgres://db/x"}
	if r.Digest() != before {
		t.Error("the digest depends on the server")
	}
	if faults := c.NotInThisVersion(); len(faults) > 0 {
		t.Errorf("refused: %v", faults)
	}
}

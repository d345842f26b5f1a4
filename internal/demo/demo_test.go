package demo

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"lethe/config"
	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestDayFollowsAndIsProven runs the whole demo in small.
func TestDayFollowsAndIsProven(t *testing.T) {
	testenv.RequirePostgres(t, oldestPostgres)
	followsAndIsProven(t, Options{})
}

// TestDayFollowsFromMySQLToMariaDB is the same with a CRM on MySQL and marketing on MariaDB.
func TestDayFollowsFromMySQLToMariaDB(t *testing.T) {
	testenv.RequirePostgres(t, oldestPostgres)
	testenv.RequireMySQL(t, testenv.MySQLServer)
	testenv.RequireMySQL(t, testenv.MariaDB)
	followsAndIsProven(t, Options{Source: MySQL, Marketing: MariaDB})
}

func followsAndIsProven(t *testing.T, o Options) {
	t.Helper()
	o.For, o.Customers, o.Rate, o.CoolOff, o.Out = 8*time.Second, 1000, 150, time.Second, t.Output()
	s, err := Run(t.Context(), o)
	if err != nil {
		t.Fatalf("%v: %+v", err, s)
	}
	if s.Erasures == 0 || s.Day.Late == 0 || s.Verified != 2*s.Erasures || s.Receipts["verified"] < s.Verified {
		t.Errorf("the day was too short to show anything: %+v", s)
	}
}

// TestConfigsAreAccepted: the config of every mix is one that Lethe takes.
func TestConfigsAreAccepted(t *testing.T) {
	dsn := map[string]string{Postgres: "postgres://lethe@127.0.0.1:5432/x", MySQL: "lethe@tcp(127.0.0.1:3306)/x", MariaDB: "lethe@tcp(127.0.0.1:3306)/x"}
	for source := range titles {
		for replica := range titles {
			text := ConfigText(source, replica, map[string]string{
				"LETHE_DEMO_KEYS": t.TempDir(), "LETHE_DEMO_BROKER": "127.0.0.1:9092", "LETHE_DEMO_COOL_OFF": "1s",
				"LETHE_DEMO_CRM": dsn[source], "LETHE_DEMO_MARKETING": dsn[replica], "LETHE_DEMO_REPORTING": dsn[Postgres] + "r",
			})
			cfg, err := config.Parse([]byte(text), "lethe.yaml")
			if err != nil {
				t.Errorf("%s to %s: %v", source, replica, err)
				continue
			}
			if (cfg.Source.MySQL != nil) != (source != Postgres) || (cfg.Replicas["marketing"].MySQL != nil) != (replica != Postgres) {
				t.Errorf("%s to %s: the config names other databases", source, replica)
			}
		}
	}
	if _, err := Run(t.Context(), Options{Source: "oracle"}); err == nil || !strings.Contains(err.Error(), MariaDB) {
		t.Errorf("a kind of database that nobody knows: %v", err)
	}
}

// TestOracleSeesWhatDoesNotFollow: the oracle is the judge of everything, so it must be able to say no.
func TestOracleSeesWhatDoesNotFollow(t *testing.T) {
	want := wanted{newsletter: true, offers: map[string]bool{"E": true}}
	erased := wanted{erased: true}
	if m := want.marketing(); !m["newsletter"] || !m["personal"] || m["blocked"] {
		t.Errorf("a customer with consent: %v", m)
	}
	if m := erased.marketing(); m["newsletter"] || m["personal"] || !m["blocked"] {
		t.Errorf("an erased customer: %v", m)
	}
	good := Summary{Followed: true, Erasures: 3, Verified: 6}
	if !good.ok() {
		t.Error("a good summary is not ok")
	}
	for name, bad := range map[string]Summary{
		"not followed": {Erasures: 3, Verified: 6},
		"unproven":     {Followed: true, Erasures: 3, Verified: 5},
		"leak":         {Followed: true, Erasures: 3, Verified: 6, CanaryHits: 1},
		"nothing done": {Followed: true},
	} {
		if bad.ok() {
			t.Errorf("%s counts as ok", name)
		}
	}
}

// TestStoppedDemoSaysSo: whoever presses Ctrl-C is not told what was under way.
func TestStoppedDemoSaysSo(t *testing.T) {
	testenv.RequirePostgres(t, oldestPostgres)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Run(ctx, Options{Customers: 100}); !errors.Is(err, ErrStopped) || err.Error() != "stopped" {
		t.Errorf("a stopped demo says %v", err)
	}
}

func TestTooFewCustomersAreRefused(t *testing.T) {
	if _, err := Run(t.Context(), Options{Customers: 5}); err == nil {
		t.Error("a demo with five customers began")
	}
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/internal/pii"
)

// sessionSettings make the text forms of values the same whatever the server, the database and the role are set to:
// identifiers are made of them. A statement timeout of the role must not end the stream.
var sessionSettings = map[string]string{
	"application_name":                    "lethe",
	"client_encoding":                     "UTF8",
	"datestyle":                           "ISO, YMD",
	"timezone":                            "UTC",
	"intervalstyle":                       "postgres",
	"extra_float_digits":                  "1",
	"bytea_output":                        "hex",
	"xmlbinary":                           "base64",
	"search_path":                         "pg_catalog",
	"standard_conforming_strings":         "on",
	"row_security":                        "off",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
}

// connectTimeout bounds a connection attempt where the DSN says nothing.
const connectTimeout = 10 * time.Second

// replicationConn is a connection in replication mode and the coalescer below it.
type replicationConn struct {
	*pgconn.PgConn
	wire *coalescer
}

func (s *Source) connectReplication(ctx context.Context) (*replicationConn, error) {
	cfg, err := pgconn.ParseConfig(s.o.DSN)
	if err != nil {
		return nil, fmt.Errorf("reading the source's DSN: %w", pii.DriverError(err))
	}
	prepareConfig(cfg, s.o)
	cfg.RuntimeParams["replication"] = "database"
	if cfg.ValidateConnect != nil {
		// pgconn asks by the extended protocol, which walsenders do not speak.
		cfg.ValidateConnect = refuseStandby
	}
	conn := &replicationConn{}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conn.wire = &coalescer{Conn: c}
		return conn.wire, nil
	}
	conn.PgConn, err = pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, connectError("connecting to the source for replication", err)
	}
	return conn, nil
}

func prepareConfig(cfg *pgconn.Config, o Options) {
	for name, value := range sessionSettings {
		cfg.RuntimeParams[name] = value
	}
	if o.Password.IsSet() {
		cfg.Password = o.Password.Reveal()
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
		cfg.DialFunc = (&net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
}

func refuseStandby(ctx context.Context, conn *pgconn.PgConn) error {
	recovering, err := scalar(ctx, conn, "SELECT pg_is_in_recovery()")
	if err != nil {
		return err
	}
	if recovering == "t" {
		return ErrNotPrimary
	}
	return nil
}

// connectError keeps ErrNotPrimary visible and reduces the rest.
func connectError(what string, err error) error {
	if errors.Is(err, ErrNotPrimary) {
		return fmt.Errorf("%s: %w", what, ErrNotPrimary)
	}
	return fmt.Errorf("%s: %w", what, pii.DriverError(err))
}

// connectSQL opens an ordinary connection with dsn.
func connectSQL(ctx context.Context, dsn string, o Options) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("reading the source's DSN: %w", pii.DriverError(err))
	}
	prepareConfig(&cfg.Config, o)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, connectError("connecting to the source", err)
	}
	return conn, nil
}

// rows runs a query of the simple protocol, the only one in replication mode. Nothing that came from outside may be put
// into sql unless it was checked for form.
func rows(ctx context.Context, conn *pgconn.PgConn, sql string) ([][][]byte, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 {
		return nil, fmt.Errorf("%d results instead of one", len(results))
	}
	return results[0].Rows, results[0].Err
}

// scalar returns the text of the one value that sql gives.
func scalar(ctx context.Context, conn *pgconn.PgConn, sql string) (string, error) {
	r, err := rows(ctx, conn, sql)
	if err != nil {
		return "", err
	}
	if len(r) != 1 || len(r[0]) != 1 {
		return "", errors.New("not one value")
	}
	return string(r[0][0]), nil
}

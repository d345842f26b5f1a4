package pii

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	binlog "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/segmentio/kafka-go"
)

// Error is a driver's error without what the driver said: a code and its class, and nothing of a message, a detail, a statement or
// a value. It unwraps only to sentinels and codes that hold no data (context errors, io.EOF, net.ErrClosed, errno, kafka.Error …).
type Error struct {
	code    string
	text    string
	safe    []error
	timeout bool
	retry   bool
}

func (e *Error) Error() string { return e.text }

// Unwrap gives the parts that are safe to look at.
func (e *Error) Unwrap() []error { return e.safe }

// Code is an SQLSTATE (of PostgreSQL), mysql_N, kafka_N, errno_N, dns, canceled, deadline_exceeded, eof, timeout, or other.
func (e *Error) Code() string { return e.code }

// Timeout and Temporary make a net.Error of it.
func (e *Error) Timeout() bool { return e.timeout }

// Temporary is true where Timeout is.
func (e *Error) Temporary() bool { return e.timeout }

// SafeToRetry reports that nothing was sent to the server; pgconn.SafeToRetry asks it.
func (e *Error) SafeToRetry() bool { return e.retry }

// Code gives the code of a reduced error in err's chain, or "".
func Code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.code
	}
	return ""
}

// DriverError reduces the error of a database or Kafka driver to an *Error; nil stays nil. Of what it does not know it keeps the types' names.
// Call it where the driver returns, before adding words of one's own: an error that was reduced below is returned as it is.
func DriverError(err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	r := reduction{}
	r.walk(err)
	var t interface{ Timeout() bool }
	e := &Error{code: r.code, safe: r.safe, retry: pgconn.SafeToRetry(err) || errors.Is(err, driver.ErrBadConn), timeout: errors.As(err, &t) && t.Timeout()}
	switch {
	case e.code == "" && e.timeout:
		e.code = "timeout"
	case e.code == "":
		e.code = "other"
	}
	e.text = strings.Join(r.parts, ": ")
	if e.text == "" {
		e.text = fmt.Sprintf("error of type %T", err)
	}
	return e
}

// reduction collects what may be told of an error and of all that it wraps.
type reduction struct {
	code  string
	rank  int // of code: a server's own code tells more than the socket's
	parts []string
	safe  []error
}

const maxParts = 6

func (r *reduction) walk(err error) {
	if err == nil {
		return
	}
	r.look(err)
	switch x := err.(type) { //nolint:errorlint // each error of the chain is looked at by itself
	case kafka.WriteErrors: // errors.Is does not look inside
		for _, one := range x {
			r.walk(one)
		}
	case interface{ Unwrap() []error }:
		for _, one := range x.Unwrap() {
			r.walk(one)
		}
	case interface{ Unwrap() error }:
		r.walk(x.Unwrap())
	}
}

// look notes one error of the chain.
func (r *reduction) look(err error) {
	switch x := err.(type) { //nolint:errorlint // as above
	case *pgconn.PgError:
		code, text := sqlState(x.Code)
		r.note(4, code, "PostgreSQL "+text, nil)
	case *mysql.MySQLError:
		code, text := mysqlCode(x.Number, string(x.SQLState[:]))
		r.note(4, code, text, nil)
	case *binlog.MyError:
		code, text := mysqlCode(x.Code, x.State)
		r.note(4, code, text, nil)
	case kafka.Error:
		r.note(3, fmt.Sprintf("kafka_%d", int(x)), fmt.Sprintf("Kafka %d %s", int(x), x.Title()), x)
	case syscall.Errno:
		r.note(1, fmt.Sprintf("errno_%d", int(x)), x.Error(), x)
	case *pgconn.ConnectError:
		if s := Servers(x.Config); s != "" {
			r.note(0, "", "server "+s, nil)
		}
	case *net.OpError:
		if x.Op != "dial" || x.Err == nil { // that a connection was being made is said by whoever made it
			r.note(0, "", x.Op+" "+x.Net, nil)
		}
	case *net.DNSError:
		r.note(1, "dns", fmt.Sprintf("looking up host (found: %t)", !x.IsNotFound), nil)
	default:
		if s, ok := sentinel(err); ok {
			r.note(2, s, err.Error(), err)
			return
		}
		switch name := fmt.Sprintf("%T", err); {
		case name == "*net.timeoutError":
			r.note(0, "", "i/o timeout", nil)
		case !plain[name]:
			r.note(0, "", name, nil)
		}
	}
}

// Servers lists host:port of all servers of a connection string, each once. They are a config's, and name no person.
func Servers(c *pgconn.Config) string {
	if c == nil || c.Host == "" {
		return ""
	}
	list := []string{address(c.Host, c.Port)}
	for _, f := range c.Fallbacks { // the same host again, with and without TLS, is one
		if a := address(f.Host, f.Port); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return strings.Join(list, ", ")
}

func address(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }

func (r *reduction) note(rank int, code, text string, safe error) {
	if code != "" && rank > r.rank {
		r.code, r.rank = code, rank
	}
	if safe != nil {
		r.safe = append(r.safe, safe)
	}
	for _, p := range r.parts {
		if p == text {
			return
		}
	}
	if len(r.parts) < maxParts {
		r.parts = append(r.parts, text)
	}
}

// plain are the types that say nothing by their name.
var plain = map[string]bool{
	"*fmt.wrapError": true, "*fmt.wrapErrors": true, "*errors.errorString": true, "*errors.joinError": true, "kafka.WriteErrors": true,
	"*os.SyscallError": true, "*errors.withStack": true, "*errors.withMessage": true, "*errors.fundamental": true, "*pgconn.perDialConnectError": true, "*pgconn.errTimeout": true,
}

// sentinels are values whose text is fixed.
var sentinels = []struct {
	err  error
	code string
}{
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "deadline_exceeded"},
	{os.ErrDeadlineExceeded, "timeout"},
	{io.EOF, "eof"},
	{io.ErrUnexpectedEOF, "eof"},
	{io.ErrClosedPipe, "closed"},
	{net.ErrClosed, "closed"},
	{pgx.ErrNoRows, "no_rows"},
	{sql.ErrNoRows, "no_rows"},
	{pgx.ErrTxClosed, "tx_closed"},
	{pgx.ErrTxCommitRollback, "commit_rolled_back"},
	{kafka.ErrGroupClosed, "closed"},
	{kafka.ErrGenerationEnded, "generation_ended"},
}

var allSentinels = slices.Concat(sentinels, mysqlSentinels)

func sentinel(err error) (code string, ok bool) {
	for _, s := range allSentinels {
		if err == s.err { //nolint:errorlint // the value itself: what wraps it may say more
			return s.code, true
		}
	}
	return "", false
}

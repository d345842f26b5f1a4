package pii

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
)

const canary = "canary-jean.dupont@exemple.fr"

func TestValuePrintsNowhere(t *testing.T) {
	v := New(canary)
	type exported struct{ V Value }
	type hidden struct {
		v  Value
		p  *Value
		vs []Value
		m  map[string]Value
	}
	h := hidden{v: v, p: &v, vs: []Value{v}, m: map[string]Value{"a": v}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%e", "%b", "%o", "%p", "%10.3s", "%T"} {
		for _, x := range []any{v, &v, exported{v}, &exported{v}, h, &h, []Value{v}, map[string]Value{"k": v}, map[Value]int{v: 1}, [1]any{v}} {
			if s := fmt.Sprintf(verb, x); strings.Contains(s, "canary") || strings.Contains(s, fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of %T prints it: %s", verb, x, s)
			}
		}
	}
	if s := fmt.Sprintf("%d %s", v, v); s != Placeholder+" "+Placeholder {
		t.Errorf("got %s", s)
	}
	if v.Reveal() != canary || NewBytes([]byte(canary)).Reveal() != canary {
		t.Error("Reveal does not give it")
	}
	if !(Value{}).IsZero() || !New("").IsZero() || v.IsZero() || (Value{}).Reveal() != "" {
		t.Error("IsZero")
	}
}

func TestValueIsNotEncoded(t *testing.T) {
	v := New(canary)
	var out bytes.Buffer
	z := zerolog.New(&out)
	z.Info().Interface("a", v).Any("b", &v).Stringer("c", v).Str("d", fmt.Sprint(v)).Interface("e", map[string]any{"f": v}).
		Fields(map[string]any{"g": v}).Any("h", []Value{v}).Msg("x")
	z.Error().Err(fmt.Errorf("looking up %v", v)).Send()
	console := zerolog.New(zerolog.ConsoleWriter{Out: &out})
	console.Info().Any("v", v).Send()
	type named struct{ V Value }
	for _, enc := range []func(any) ([]byte, error){json.Marshal, xml.Marshal} {
		b, err := enc(named{v})
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	if s := out.String(); strings.Contains(s, "canary") || strings.Count(s, Placeholder) < 10 {
		t.Errorf("got %s", s)
	}
}

func pgError(code string) *pgconn.PgError {
	return &pgconn.PgError{
		Severity: canary, Code: code, Message: canary, Detail: canary, Hint: canary, InternalQuery: canary, Where: canary,
		SchemaName: canary, TableName: canary, ColumnName: canary, DataTypeName: canary, ConstraintName: canary, File: canary, Routine: canary,
	}
}

type customError struct{ s string }

func (e customError) Error() string { return e.s }

func TestDriverErrorKeepsCodeAndClassOnly(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	cases := map[string]struct {
		err        error
		code, text string
	}{
		"unique":         {fmt.Errorf(canary+": %w", pgError("23505")), "23505", "PostgreSQL 23505 unique_violation (integrity constraint violation)"},
		"no name":        {pgError("22012"), "22012", "PostgreSQL 22012 (data exception)"},
		"no such class":  {pgError("ZZ123"), "ZZ123", "PostgreSQL ZZ123"},
		"not a SQLSTATE": {pgError(canary), "?????", "PostgreSQL error without a well-formed SQLSTATE"},
		"joined":         {errors.Join(errors.New(canary), pgError("40001")), "40001", "PostgreSQL 40001 serialization_failure (transaction rollback)"},
		"kafka":          {fmt.Errorf(canary+" %w", kafka.RequestTimedOut), "kafka_7", "Kafka 7 Request Timed Out"},
		"kafka writes": {
			kafka.WriteErrors{nil, kafka.NotLeaderForPartition, fmt.Errorf(canary+" %w", kafka.MessageSizeTooLarge), kafka.NotLeaderForPartition},
			"kafka_6", "Kafka 6 Not Leader For Partition: Kafka 10 Message Size Too Large",
		},
		"kafka message": {kafka.MessageTooLargeError{Message: kafka.Message{Value: []byte(canary)}}, "kafka_10", "kafka.MessageTooLargeError: Kafka 10 Message Size Too Large"},
		"refused":       {fmt.Errorf(canary+": %w", dial), fmt.Sprintf("errno_%d", syscall.ECONNREFUSED), "connection refused"},
		"dns":           {&net.DNSError{Name: canary, Err: canary, IsNotFound: true}, "dns", "looking up host (found: false)"},
		"canceled":      {fmt.Errorf(canary+": %w", context.Canceled), "canceled", "context canceled"},
		"deadline":      {context.DeadlineExceeded, "deadline_exceeded", "context deadline exceeded"},
		"eof":           {fmt.Errorf(canary+": %w", io.ErrUnexpectedEOF), "eof", "unexpected EOF"},
		"no rows":       {pgx.ErrNoRows, "no_rows", ""},
		"scan":          {pgx.ScanArgError{FieldName: canary, Err: errors.New(canary)}, "other", "pgx.ScanArgError"},
		"tls":           {x509.UnknownAuthorityError{}, "other", "x509.UnknownAuthorityError"},
		"custom":        {fmt.Errorf(canary+": %w", customError{canary}), "other", "pii.customError"},
		"text":          {errors.New(canary), "other", "error of type *errors.errorString"},
		"net timeout":   {&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}, "timeout", "read tcp: "},
	}
	for name, c := range cases {
		got := DriverError(c.err)
		if Code(got) != c.code || !strings.HasPrefix(got.Error(), c.text) {
			t.Errorf("%s: code %q, text %q, want %q, %q", name, Code(got), got, c.code, c.text)
		}
		for _, s := range []string{fmt.Sprintf("%v|%+v|%#v|%s", got, got, got, got), deep(got)} {
			if strings.Contains(s, "canary") {
				t.Errorf("%s shows what the driver said: %s", name, s)
			}
		}
	}
}

// deep prints all that an error unwraps to.
func deep(err error) string {
	s := fmt.Sprintf("%T %+v %#v\n", err, err, err)
	switch x := err.(type) { //nolint:errorlint // a walk
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			s += deep(e)
		}
	case interface{ Unwrap() error }:
		if e := x.Unwrap(); e != nil {
			s += deep(e)
		}
	}
	return s
}

func TestDriverErrorUnwrapsToWhatIsSafe(t *testing.T) {
	if DriverError(nil) != nil || Code(nil) != "" || Code(io.EOF) != "" {
		t.Error("nothing became something")
	}
	chain := fmt.Errorf("x: %w", &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)})
	for _, c := range []struct{ err, is error }{
		{fmt.Errorf("a: %w", context.Canceled), context.Canceled},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), context.DeadlineExceeded},
		{chain, syscall.ECONNRESET},
		{kafka.WriteErrors{nil, kafka.LeaderNotAvailable}, kafka.LeaderNotAvailable},
		{fmt.Errorf("a: %w", net.ErrClosed), net.ErrClosed},
		{pgx.ErrNoRows, pgx.ErrNoRows},
		{kafka.ErrGroupClosed, kafka.ErrGroupClosed},
	} {
		if got := DriverError(c.err); !errors.Is(got, c.is) {
			t.Errorf("%v is not %v any more", got, c.is)
		}
	}
	var pg *pgconn.PgError
	if errors.As(DriverError(pgError("23505")), &pg) {
		t.Error("it unwraps to the driver's own error")
	}
	timeout := DriverError(&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded})
	var netErr net.Error
	if !errors.As(timeout, &netErr) || !netErr.Timeout() || !errors.Is(timeout, os.ErrDeadlineExceeded) {
		t.Errorf("%v is no timeout any more", timeout)
	}
	once := DriverError(pgError("23505"))
	twice := fmt.Errorf("applying batch: %w", once)
	if got := DriverError(twice); got != twice { //nolint:errorlint // the same value
		t.Errorf("reduced twice: %v", got)
	}
}

type retryable struct{ error }

func (retryable) SafeToRetry() bool { return true }

func TestDriverErrorKeepsSafeToRetry(t *testing.T) {
	if !pgconn.SafeToRetry(DriverError(retryable{errors.New(canary)})) || pgconn.SafeToRetry(DriverError(pgError("40001"))) {
		t.Error("SafeToRetry was lost or made up")
	}
}

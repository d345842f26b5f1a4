package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/capture"
	"lethe/internal/app"
	"lethe/internal/pii"
	"lethe/sinks"
)

func TestUnreachableIsToldFromRefused(t *testing.T) {
	_, missing := os.Open("/does/not/exist")
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: &os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}}
	sqlstate := func(code string) error { return pii.DriverError(&pgconn.PgError{Code: code}) }
	mysqlError := func(number uint16) error { return pii.DriverError(&mysql.MySQLError{Number: number}) }
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"refused":             {refused, true},
		"refused, reduced":    {fmt.Errorf("connecting: %w", pii.DriverError(refused)), true},
		"no such host":        {pii.DriverError(&net.DNSError{Err: "no such host", IsNotFound: true}), true},
		"deadline":            {pii.DriverError(context.DeadlineExceeded), true},
		"hung up":             {fmt.Errorf("reading: %w", io.ErrUnexpectedEOF), true},
		"server stops":        {sqlstate("57P01"), true},
		"too many":            {sqlstate("53300"), true},
		"MySQL is full":       {fmt.Errorf("x: %w", mysqlError(1040)), true},
		"MySQL stops":         {mysqlError(1053), true},
		"MySQL is gone":       {pii.DriverError(mysql.ErrInvalidConn), true},
		"MySQL refuses":       {mysqlError(1045), false},
		"in a sink":           {&sinks.Error{Op: "x", Err: sqlstate("08006")}, true},
		"said so":             {errors.Join(errors.New("x"), app.ErrUnreachable), true},
		"privilege":           {sqlstate("42501"), false},
		"no column, wrapped":  {&sinks.Error{Op: "x", Err: sqlstate("42703")}, false},
		"interrupted":         {pii.DriverError(context.Canceled), false},
		"no file":             {missing, false},
		"our own port":        {&net.OpError{Op: "listen", Err: syscall.EADDRINUSE}, false},
		"an error of our own": {errors.New("x"), false},
	} {
		if got := app.IsUnreachable(tc.err); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
	if !app.IsGap(fmt.Errorf("x: %w", &capture.GapError{Cause: "slot_lost"})) || !app.IsGap(fmt.Errorf("x: %w", sinks.ErrGap)) || app.IsGap(missing) {
		t.Error("a gap is not told from other errors")
	}
}

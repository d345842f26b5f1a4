package pii

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"

	binlog "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
)

func serverError(number uint16, state string) *mysql.MySQLError {
	e := &mysql.MySQLError{Number: number, Message: "Duplicate entry '" + canary + "' for key 'contact.email'"}
	copy(e.SQLState[:], state)
	return e
}

func TestMySQLErrorKeepsNumberAndClassOnly(t *testing.T) {
	stream := &binlog.MyError{Code: 1236, Message: canary, State: "HY000"}
	_, quoting := binlog.ParseMariadbGTID(canary)
	if quoting == nil || !strings.Contains(quoting.Error(), "canary") {
		t.Fatalf("the library's error quotes nothing: %v", quoting)
	}
	for name, c := range map[string]struct {
		err        error
		code, text string
		number     uint16
	}{
		"duplicate": {fmt.Errorf(canary+": %w", serverError(1062, "23000")), "mysql_1062", "MySQL 1062 ER_DUP_ENTRY, SQLSTATE 23000 (integrity constraint violation)", 1062},
		"deadlock":  {serverError(1213, "40001"), "mysql_1213", "MySQL 1213 ER_LOCK_DEADLOCK, SQLSTATE 40001 (transaction rollback)", 1213},
		"no name":   {serverError(1689, "HY000"), "mysql_1689", "MySQL 1689, SQLSTATE HY000 (general error)", 1689},
		"no state":  {&mysql.MySQLError{Number: 1040, Message: canary}, "mysql_1040", "MySQL 1040 ER_CON_COUNT_ERROR", 1040},
		"bad state": {serverError(1366, "can'r"), "mysql_1366", "MySQL 1366 ER_TRUNCATED_WRONG_VALUE_FOR_FIELD", 1366},
		"stream":    {stream, "mysql_1236", "MySQL 1236 ER_MASTER_FATAL_ERROR_READING_BINLOG, SQLSTATE HY000 (general error)", 1236},
		"stream wrapped": {
			fmt.Errorf("row %s: %w", canary, stream), "mysql_1236",
			"MySQL 1236 ER_MASTER_FATAL_ERROR_READING_BINLOG, SQLSTATE HY000 (general error)", 1236,
		},
		"stream text":  {quoting, "other", "error of type *errors.", 0},
		"bad conn":     {driver.ErrBadConn, "closed", "driver: bad connection", 0},
		"lost":         {fmt.Errorf(canary+" %w", mysql.ErrInvalidConn), "closed", "invalid connection", 0},
		"stream lost":  {fmt.Errorf("x: %w", binlog.ErrBadConn), "closed", "connection was bad", 0},
		"ended":        {sql.ErrTxDone, "tx_closed", "sql: transaction has already", 0},
		"login method": {mysql.ErrUnknownPlugin, "login_method", "this authentication plugin is not supported", 0},
	} {
		got := DriverError(c.err)
		if Code(got) != c.code || !strings.HasPrefix(got.Error(), c.text) {
			t.Errorf("%s: code %q, text %q, want %q, %q", name, Code(got), got, c.code, c.text)
		}
		if MySQLNumber(c.err) != c.number || MySQLNumber(fmt.Errorf("x: %w", got)) != c.number {
			t.Errorf("%s: the number is %d, and reduced %d, want %d", name, MySQLNumber(c.err), MySQLNumber(got), c.number)
		}
		for _, s := range []string{fmt.Sprintf("%v|%+v|%#v|%s", got, got, got, got), deep(got)} {
			if strings.Contains(s, "canary") || strings.Contains(s, "contact.email") {
				t.Errorf("%s shows what the driver said: %s", name, s)
			}
		}
	}
	if got := DriverError(serverError(1062, "23000")); errors.As(got, new(*mysql.MySQLError)) {
		t.Error("it unwraps to the driver's own error")
	}
	if !pgconn.SafeToRetry(DriverError(fmt.Errorf("x: %w", driver.ErrBadConn))) || pgconn.SafeToRetry(DriverError(mysql.ErrInvalidConn)) {
		t.Error("only what was never sent may be sent again")
	}
	if MySQLNumber(nil) != 0 || MySQLNumber(DriverError(pgError("23505"))) != 0 {
		t.Error("a number out of nothing")
	}
}

package pii

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"

	binlog "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-sql-driver/mysql"
)

// mysqlPrefix begins the Code of what a MySQL or MariaDB server answered.
const mysqlPrefix = "mysql_"

// MySQLNumber is the error number of a MySQL or MariaDB server in err's chain; 0 where there is none. It knows reduced
// errors, and those of both drivers.
func MySQLNumber(err error) uint16 {
	if text, ok := strings.CutPrefix(Code(err), mysqlPrefix); ok {
		n, _ := strconv.ParseUint(text, 10, 16) // the code was made of a number
		return uint16(n)
	}
	var server *mysql.MySQLError
	if errors.As(err, &server) {
		return server.Number
	}
	var stream *binlog.MyError
	if errors.As(err, &stream) {
		return stream.Code
	}
	return 0
}

// mysqlCode gives the code of a server's error, and what may be printed of it (MySQL 9 and MariaDB 11 error references).
func mysqlCode(number uint16, state string) (code, text string) {
	text = fmt.Sprintf("MySQL %d", number)
	if name := mysqlNames[number]; name != "" {
		text += " " + name
	}
	if wellFormed(state) {
		text += ", SQLSTATE " + state
		if class := classes[state[:2]]; class != "" {
			text += " (" + class + ")"
		}
	}
	return mysqlPrefix + strconv.Itoa(int(number)), text
}

// mysqlSentinels are values whose text is fixed. The drivers' own words on how to log in hold no data.
var mysqlSentinels = []struct {
	err  error
	code string
}{
	{driver.ErrBadConn, "closed"},
	{sql.ErrConnDone, "closed"},
	{sql.ErrTxDone, "tx_closed"},
	{mysql.ErrInvalidConn, "closed"},
	{mysql.ErrMalformPkt, "protocol"},
	{mysql.ErrPktSync, "protocol"},
	{mysql.ErrPktSyncMul, "protocol"},
	{mysql.ErrPktTooLarge, "packet_too_large"},
	{mysql.ErrNoTLS, "no_tls"},
	{mysql.ErrCleartextPassword, "login_method"},
	{mysql.ErrNativePassword, "login_method"},
	{mysql.ErrOldPassword, "login_method"},
	{mysql.ErrUnknownPlugin, "login_method"},
	{mysql.ErrOldProtocol, "protocol"},
	{binlog.ErrBadConn, "closed"},
	{binlog.ErrMalformPacket, "protocol"},
}

// mysqlNames are the errors that an operator meets. Those from 1900 to 1999 and from 4000 on are MariaDB's alone.
var mysqlNames = map[uint16]string{
	1021: "ER_DISK_FULL", 1040: "ER_CON_COUNT_ERROR", 1044: "ER_DBACCESS_DENIED_ERROR", 1045: "ER_ACCESS_DENIED_ERROR",
	1048: "ER_BAD_NULL_ERROR", 1049: "ER_BAD_DB_ERROR", 1053: "ER_SERVER_SHUTDOWN", 1054: "ER_BAD_FIELD_ERROR",
	1062: "ER_DUP_ENTRY", 1064: "ER_PARSE_ERROR", 1114: "ER_RECORD_FILE_FULL", 1129: "ER_HOST_IS_BLOCKED",
	1130: "ER_HOST_NOT_PRIVILEGED", 1142: "ER_TABLEACCESS_DENIED_ERROR", 1143: "ER_COLUMNACCESS_DENIED_ERROR",
	1146: "ER_NO_SUCH_TABLE", 1153: "ER_NET_PACKET_TOO_LARGE", 1159: "ER_NET_READ_INTERRUPTED", 1184: "ER_NEW_ABORTING_CONNECTION",
	1203: "ER_TOO_MANY_USER_CONNECTIONS", 1205: "ER_LOCK_WAIT_TIMEOUT", 1213: "ER_LOCK_DEADLOCK", 1226: "ER_USER_LIMIT_REACHED",
	1227: "ER_SPECIFIC_ACCESS_DENIED_ERROR", 1236: "ER_MASTER_FATAL_ERROR_READING_BINLOG", 1264: "ER_WARN_DATA_OUT_OF_RANGE",
	1265: "WARN_DATA_TRUNCATED", 1290: "ER_OPTION_PREVENTS_STATEMENT", 1292: "ER_TRUNCATED_WRONG_VALUE", 1317: "ER_QUERY_INTERRUPTED",
	1364: "ER_NO_DEFAULT_FOR_FIELD", 1366: "ER_TRUNCATED_WRONG_VALUE_FOR_FIELD", 1370: "ER_PROCACCESS_DENIED_ERROR",
	1406: "ER_DATA_TOO_LONG", 1451: "ER_ROW_IS_REFERENCED_2", 1452: "ER_NO_REFERENCED_ROW_2", 1595: "ER_SLAVE_RELAY_LOG_WRITE_FAILURE",
	1644: "ER_SIGNAL_EXCEPTION", 1698: "ER_ACCESS_DENIED_NO_PASSWORD_ERROR", 1792: "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION",
	1820: "ER_MUST_CHANGE_PASSWORD", 1836: "ER_READ_ONLY_MODE", 1862: "ER_MUST_CHANGE_PASSWORD_LOGIN", 1927: "ER_CONNECTION_KILLED",
	1969: "ER_STATEMENT_TIMEOUT", 2006: "CR_SERVER_GONE_ERROR", 2013: "CR_SERVER_LOST", 2026: "CR_SSL_CONNECTION_ERROR",
	3024: "ER_QUERY_TIMEOUT", 3118: "ER_ACCOUNT_HAS_BEEN_LOCKED", 3159: "ER_SECURE_TRANSPORT_REQUIRED", 3168: "ER_SERVER_ISNT_AVAILABLE", 3819: "ER_CHECK_CONSTRAINT_VIOLATED",
	4025: "ER_CONSTRAINT_FAILED", 4031: "ER_CLIENT_INTERACTION_TIMEOUT", 4151: "ER_ACCOUNT_HAS_BEEN_LOCKED",
}

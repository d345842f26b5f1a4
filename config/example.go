package config

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed example.yaml
var example string

// Databases are the kinds of databases that a source or a replica may be of. MariaDB is of the kind mysql.
func Databases() []string { return []string{"postgres", "mysql"} }

// Example returns the commented starter file that lethe init writes, for a source and a replica of the kinds given. It
// loads once its password files exist.
func Example(source, replica string) (string, error) {
	for _, kind := range []string{source, replica} {
		if !slices.Contains(Databases(), kind) {
			return "", fmt.Errorf("no database %q is known, only %s", kind, list(Databases()))
		}
	}
	text := example
	if source == "mysql" {
		text = section(text, "source:", "  postgres:\n", exampleMySQLSource)
		text = strings.ReplaceAll(text, "public.", "crm.")
	}
	if replica == "mysql" {
		text = section(text, "replicas:", "    postgres:\n", exampleMySQLReplica)
		text = strings.Replace(text, "residuals: {wal: 7d, backup: 35d}      ", "residuals: {binlog: 7d, backup: 35d}   ", 1)
		text = strings.Replace(text, "newsletter_optin and not blocked and not frozen", "newsletter_optin = 1 and blocked = 0 and frozen = 0", 1)
	}
	return text, nil
}

// section replaces the first section of that head behind a line: the head and all lines that are further to the right.
func section(text, behind, head, with string) string {
	start := strings.Index(text, "\n"+behind)
	start += strings.Index(text[start:], "\n"+head) + 1
	end := start + len(head)
	indent := head[:len(head)-len(strings.TrimLeft(head, " "))] + " "
	for strings.HasPrefix(text[end:], indent) {
		end += strings.IndexByte(text[end:], '\n') + 1
	}
	return text[:start] + with + text[end:]
}

const exampleMySQLSource = `  mysql:                     # MySQL 8.0 and later or MariaDB 10.6 and later: Lethe sees which
    dsn: lethe@tcp(crm-db:3306)/crm?tls=true      # never with a password; tables below are named database.table
    password_file: secrets/crm-password
    # ca_file: crm-ca.pem    # where an authority of your own signed the server's certificate
    # server_id: 4021        # among the server's replicas; default: derived from the name above
    # heartbeat_table: crm.lethe_heartbeat        # its one row is what a heartbeat updates
    # require_gtid: true     # false follows one server without GTID: any other server is a gap then
    max_binlog_lag: 10GB     # Lethe's alarm; the server purges by binlog_expire_logs_seconds, whether Lethe has read or not
`

const exampleMySQLReplica = `    mysql:
      dsn: lethe@tcp(marketing-db:3306)/marketing?tls=true
      password_file: secrets/marketing-password
      # prefix: lethe_       # of Lethe's own tables, which lie in the same database
      # verify: {dsn: "lethe_verify@tcp(…)/marketing?tls=true", password_file: …}   # another login, which only reads, for the read-back
`

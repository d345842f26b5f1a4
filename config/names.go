package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The closed vocabularies of the file. The consent states are W3C DPV's, the legal bases those of GDPR Art. 6(1), the
// grounds to hold those of Art. 17(3).
var (
	channels      = []string{"email", "sms", "phone_human", "phone_automated", "postal", "push", "social_match"}
	legalBases    = []string{"consent", "contract", "legal_obligation", "vital_interests", "public_task", "legitimate_interests"}
	consentStates = []string{
		"unknown", "requested", "request_deferred", "given", "renewed_given", "refused", "withdrawn", "revoked", "expired", "invalidated",
	}
	holdBases     = []string{"legal_obligation", "legal_claims", "public_health", "archiving", "freedom_of_expression"}
	residualKinds = []string{"wal", "binlog", "backup", "dead_tuples", "log"}
)

// Channels returns the channels that a consent may name.
func Channels() []string { return slices.Clone(channels) }

// LegalBases returns the legal bases that a consent may name.
func LegalBases() []string { return slices.Clone(legalBases) }

// ConsentStates returns the states that a consent's closed map may lead to.
func ConsentStates() []string { return slices.Clone(consentStates) }

// maxIdentifier is PostgreSQL's NAMEDATALEN - 1, in bytes; MySQL's 64 characters are not less.
const maxIdentifier = 63

// parseIdentifier accepts what a quoted SQL identifier may be, but no dot: the file writes table.column.
func parseIdentifier(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("is empty")
	case len(s) > maxIdentifier:
		return "", fmt.Errorf("is longer than the %d bytes of a database's name", maxIdentifier)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' }):
		return "", errors.New("has a control character or is no UTF-8")
	case strings.Contains(s, "."):
		return "", fmt.Errorf("%s has a dot too many", strconv.Quote(s))
	case strings.Contains(s, `"`):
		return "", errors.New(`is written without quotation marks, in the database's own spelling`)
	case strings.TrimSpace(s) != s:
		return "", errors.New("begins or ends with a space")
	}
	return s, nil
}

func parseColumn(s string) (string, error) {
	if _, err := parseIdentifier(s); err != nil {
		return "", fmt.Errorf("must be the name of a column: %w", err)
	}
	return s, nil
}

// parseSourceTable accepts schema.table.
func parseSourceTable(s string) (string, error) {
	schema, table, found := strings.Cut(s, ".")
	if !found {
		return "", fmt.Errorf("%s must be schema.table (database.table on MySQL), for example public.%s", strconv.Quote(s), s)
	}
	return parseTableParts(s, schema, table)
}

// parseReplicaTable accepts table or schema.table; without a schema the connection's search path decides.
func parseReplicaTable(s string) (string, error) {
	if schema, table, found := strings.Cut(s, "."); found {
		return parseTableParts(s, schema, table)
	}
	return parseTableParts(s, s)
}

func parseTableParts(whole string, parts ...string) (string, error) {
	for _, part := range parts {
		if _, err := parseIdentifier(part); err != nil {
			return "", fmt.Errorf("must be the name of a table: %w", err)
		}
	}
	return whole, nil
}

// splitTableColumn splits table.column or schema.table.column of a replica.
func splitTableColumn(s string) (table, column string, err error) {
	dot := strings.LastIndex(s, ".")
	if dot < 0 {
		return "", "", fmt.Errorf("%s must be table.column", strconv.Quote(s))
	}
	if table, err = parseReplicaTable(s[:dot]); err == nil {
		column, err = parseColumn(s[dot+1:])
	}
	return table, column, err
}

func parseTableColumn(s string) (string, error) {
	_, _, err := splitTableColumn(s)
	return s, err
}

var codeForm = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// parseCode accepts Lethe's own names: they become parts of ids, topics and metric labels.
func parseCode(s string) (string, error) {
	if !codeForm.MatchString(s) {
		return "", fmt.Errorf("%s must be 1 to 63 of a-z, 0-9 and _", strconv.Quote(s))
	}
	return s, nil
}

var labelForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// parseLabel accepts the names that others gave to their forms, notices and roles. A space or an @ would let free text in.
func parseLabel(s string) (string, error) {
	if !labelForm.MatchString(s) {
		return "", fmt.Errorf("%s must be a code of 1 to 63 letters, digits, . _ and -", strconv.Quote(s))
	}
	return s, nil
}

var topicForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$`)

func parseTopicPrefix(s string) (string, error) {
	if !topicForm.MatchString(s) {
		return "", errors.New("must be the beginning of a topic name: letters, digits, . _ -")
	}
	return s, nil
}

var groundForm = regexp.MustCompile(`^A17[A-Za-z0-9]{1,40}$`)

func parseGround(s string) (string, error) {
	if !groundForm.MatchString(s) {
		return "", errors.New("must be a W3C DPV term of Art. 17, for example A17NoLegalBasis or A17ObjectA21")
	}
	return s, nil
}

func parseHostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	n, numberErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numberErr != nil || n == 0 || strings.ContainsAny(host, " /@") {
		return "", errors.New("must be host:port")
	}
	return s, nil
}

func parseListen(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	_, numberErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numberErr != nil || strings.ContainsAny(host, " /@") {
		return "", errors.New("must be host:port, for example 127.0.0.1:8480")
	}
	return s, nil
}

func parseRegistryURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", errors.New("must be an http or https address")
	}
	if u.User != nil {
		return "", errors.New("must not hold a user or password")
	}
	return s, nil
}

var regionForm = regexp.MustCompile(`^[A-Z]{2}$`)

func parseRegion(s string) (string, error) {
	if !regionForm.MatchString(s) {
		return "", errors.New("must be a region of two capital letters (ISO 3166-1), for example FR")
	}
	return s, nil
}

// errPassword is one for all forms of DSN: the DSN itself is never in a message, because it may hold the password.
var errPassword = errors.New("holds a password; use password_file (or password: ${ENV}), so that the DSN can be shown")

var keywordPassword = regexp.MustCompile(`(?i)(^|\s)(ssl)?password\s*=`)

// parsePostgresDSN accepts the URL and the keyword form of libpq, without a password in it.
func parsePostgresDSN(s string) (string, error) {
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		u, err := url.Parse(s)
		if err != nil {
			// The parser's own message quotes the URL, and with it the password that may be why it does not parse.
			return "", errors.New("is no URL; write postgres://user@host:5432/database?sslmode=verify-full")
		}
		if _, set := u.User.Password(); set {
			return "", errPassword
		}
		for key := range u.Query() {
			if k := strings.ToLower(key); k == "password" || k == "sslpassword" {
				return "", errPassword
			}
		}
		return s, nil
	}
	if !strings.Contains(s, "=") {
		return "", errors.New("is no DSN; write postgres://user@host:5432/database?sslmode=verify-full")
	}
	if keywordPassword.MatchString(s) {
		return "", errPassword
	}
	return s, nil
}

package mysql

import (
	"encoding/binary"
	"errors"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// queryForm is how an event carries a statement.
type queryForm uint8

const (
	queryPlain      queryForm = iota
	queryLoad                 // EXECUTE_LOAD_QUERY_EVENT: LOAD DATA in statement format
	queryCompressed           // MariaDB's log_bin_compress
)

// query is a statement of the log. Its text is in the client's charset and may hold anybody's data: it is looked at, and
// never told.
type query struct {
	schema      string // the default database
	text        []byte
	noBackslash bool // sql_mode has NO_BACKSLASH_ESCAPES
}

// noBackslashEscapes is the bit of sql_mode, the same on MySQL and MariaDB.
const noBackslashEscapes = 1 << 20

// maxQuery bounds what a compressed statement may unfold to: servers take no longer ones (max_allowed_packet).
const maxQuery = 1 << 30

var errQuery = errors.New("a statement's event cannot be read")

// readQuery reads the body of a QUERY_EVENT (MySQL internals manual, binlog event, Query_event).
func readQuery(data []byte, form queryForm) (query, error) {
	c := cursor{b: data}
	c.bytes(8) // thread, seconds that it took
	schema := uint64(c.byte())
	c.bytes(2) // error code
	status := uint64(c.uint16())
	if form == queryLoad {
		c.bytes(13)
	}
	q := query{noBackslash: sqlMode(c.bytes(status))&noBackslashEscapes != 0}
	q.schema = string(c.bytes(schema))
	c.bytes(1)
	if c.short {
		return q, errQuery
	}
	q.text = c.b
	if form != queryCompressed {
		return q, nil
	}
	var err error
	if q.text, err = unfold(q.text); err != nil {
		return q, errQuery
	}
	return q, nil
}

// unfold inflates MariaDB's compressed form: a header that says how long the length is, the length, and a zlib stream.
func unfold(b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, errQuery
	}
	n := int(b[0] & 0x07)
	if n < 1 || n > 4 || len(b) < 1+n {
		return nil, errQuery
	}
	var size uint64
	for _, x := range b[1 : 1+n] { // big-endian
		size = size<<8 | uint64(x)
	}
	if size > maxQuery {
		return nil, errQuery
	}
	return gomysql.DecompressMariadbData(b)
}

// sqlMode finds the sql_mode among the status variables: it is the first, or the second after the flags.
func sqlMode(vars []byte) uint64 {
	const flags2, mode = 0, 1
	if len(vars) >= 5 && vars[0] == flags2 {
		vars = vars[5:]
	}
	if len(vars) >= 9 && vars[0] == mode {
		return binary.LittleEndian.Uint64(vars[1:])
	}
	return 0
}

// token is a piece of a statement.
type token struct {
	kind tokenKind
	text string // of a name: without its quotes
}

type tokenKind uint8

const (
	tokenEnd    tokenKind = iota
	tokenWord             // a keyword, a number, or a name without quotes
	tokenName             // a name in quotes; with "…" it may be a string too, which does no harm here
	tokenString           // '…'
	tokenOther            // one character
)

// lexer takes a statement apart as the servers do, far enough to find keywords and names: comments, comments that are
// executed, quotes. It is no parser.
type lexer struct {
	b           []byte
	noBackslash bool
	executed    int // depth of /*! … */
	peeked      *token
}

func newLexer(text []byte, noBackslash bool) *lexer { return &lexer{b: text, noBackslash: noBackslash} }

// peek returns the next token and leaves it there.
func (l *lexer) peek() token {
	if l.peeked == nil {
		t := l.scan()
		l.peeked = &t
	}
	return *l.peeked
}

// next takes the next token.
func (l *lexer) next() token {
	if t := l.peeked; t != nil {
		l.peeked = nil
		return *t
	}
	return l.scan()
}

// keyword takes the next token and returns it in capitals; empty where it is no word.
func (l *lexer) keyword() string {
	t := l.next()
	if t.kind != tokenWord {
		return ""
	}
	return upper(t.text)
}

// accept takes the next token where it is one of the words.
func (l *lexer) accept(words ...string) bool {
	t := l.peek()
	if t.kind != tokenWord {
		return false
	}
	u := upper(t.text)
	for _, w := range words {
		if u == w {
			l.next()
			return true
		}
	}
	return false
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

func (l *lexer) scan() token {
	l.skip()
	if len(l.b) == 0 {
		return token{}
	}
	switch c := l.b[0]; {
	case c == '`' || c == '"':
		return token{tokenName, l.quoted(c)}
	case c == '\'':
		return token{tokenString, l.quoted(c)}
	case wordByte(c):
		n := 1
		for n < len(l.b) && wordByte(l.b[n]) {
			n++
		}
		t := token{tokenWord, string(l.b[:n])}
		l.b = l.b[n:]
		return t
	default:
		l.b = l.b[1:]
		return token{tokenOther, string(rune(c))}
	}
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// quoted takes a quoted piece: the quote doubled stands for itself, and in strings a backslash takes the next character.
func (l *lexer) quoted(quote byte) string {
	var out []byte
	i := 1
	for i < len(l.b) {
		switch c := l.b[i]; {
		case c == quote && i+1 < len(l.b) && l.b[i+1] == quote:
			out = append(out, quote)
			i += 2
		case c == quote:
			l.b = l.b[i+1:]
			return string(out)
		case c == '\\' && quote != '`' && !l.noBackslash && i+1 < len(l.b):
			out = append(out, l.b[i+1])
			i += 2
		default:
			out = append(out, c)
			i++
		}
	}
	l.b = nil
	return string(out)
}

// skip passes over blanks and comments. A comment that the server executes, /*! or /*M! and a version, is text.
func (l *lexer) skip() {
	for len(l.b) > 0 {
		b := l.b
		switch {
		case b[0] == ' ' || b[0] >= '\t' && b[0] <= '\r':
			l.b = b[1:]
		case b[0] == '#' || len(b) >= 2 && b[0] == '-' && b[1] == '-' && (len(b) == 2 || b[2] <= ' '):
			l.line()
		case l.executed > 0 && len(b) >= 2 && b[0] == '*' && b[1] == '/':
			l.executed--
			l.b = b[2:]
		case len(b) >= 2 && b[0] == '/' && b[1] == '*':
			l.comment()
		default:
			return
		}
	}
}

func (l *lexer) line() {
	for len(l.b) > 0 && l.b[0] != '\n' {
		l.b = l.b[1:]
	}
}

func (l *lexer) comment() {
	b := l.b[2:]
	if len(b) >= 2 && b[0] == 'M' && b[1] == '!' {
		b = b[1:]
	}
	if len(b) > 0 && b[0] == '!' {
		b = b[1:]
		for len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
			b = b[1:]
		}
		l.executed++
		l.b = b
		return
	}
	for len(b) >= 2 && (b[0] != '*' || b[1] != '/') {
		b = b[1:]
	}
	if len(b) < 2 {
		l.b = nil
		return
	}
	l.b = b[2:]
}

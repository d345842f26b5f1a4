package mysql

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// interval is a closed range of counters.
type interval struct{ first, last uint64 }

// gtidSet is a set of MySQL's GTIDs by origin: server uuid in lower case, and after a colon the tag where there is one. The
// intervals of an origin are ascending and never touch.
type gtidSet map[string][]interval

var errGTID = errors.New("is no GTID set")

// parseGTIDs reads uuid:1-5:7,uuid:tag:1 as servers write it.
func parseGTIDs(text string) (gtidSet, error) {
	set := gtidSet{}
	for part := range strings.SplitSeq(unspaced(text), ",") {
		if part == "" {
			continue
		}
		fields := strings.Split(strings.ToLower(part), ":")
		uuid := fields[0]
		if len(uuid) != 36 || len(fields) < 2 {
			return nil, errGTID
		}
		origin := uuid
		for _, f := range fields[1:] {
			if f == "" {
				return nil, errGTID
			}
			if f[0] < '0' || f[0] > '9' {
				origin = uuid + ":" + f
				continue
			}
			i, err := parseInterval(f)
			if err != nil {
				return nil, err
			}
			set.addInterval(origin, i)
		}
	}
	return set, nil
}

func parseInterval(text string) (interval, error) {
	first, last, isRange := strings.Cut(text, "-")
	a, errA := strconv.ParseUint(first, 10, 63)
	b, errB := a, error(nil)
	if isRange {
		b, errB = strconv.ParseUint(last, 10, 63)
	}
	if errA != nil || errB != nil || a == 0 || b < a {
		return interval{}, errGTID
	}
	return interval{a, b}, nil
}

// add puts one GTID into the set.
func (s gtidSet) add(origin string, n uint64) {
	list := s[origin]
	if k := len(list); k > 0 && list[k-1].last+1 == n { // the next one, nearly always
		list[k-1].last = n
		return
	}
	s.addInterval(origin, interval{n, n})
}

func (s gtidSet) addInterval(origin string, i interval) {
	list := append(s[origin], i)
	slices.SortFunc(list, func(a, b interval) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	merged := list[:1]
	for _, next := range list[1:] {
		if top := &merged[len(merged)-1]; next.first <= top.last+1 {
			top.last = max(top.last, next.last)
			continue
		}
		merged = append(merged, next)
	}
	s[origin] = merged
}

func (s gtidSet) has(origin string, n uint64) bool {
	list := s[origin]
	for i := len(list) - 1; i >= 0; i-- {
		if n >= list[i].first {
			return n <= list[i].last
		}
	}
	return false
}

// minus returns what other lacks of s.
func (s gtidSet) minus(other gtidSet) gtidSet {
	rest := gtidSet{}
	for origin, list := range s {
		for _, i := range list {
			for _, o := range other[origin] {
				if o.last < i.first || o.first > i.last {
					continue
				}
				if o.first > i.first {
					rest.addInterval(origin, interval{i.first, o.first - 1})
				}
				i.first = o.last + 1
				if i.first > i.last {
					break
				}
			}
			if i.first <= i.last {
				rest.addInterval(origin, i)
			}
		}
	}
	return rest
}

// count is the number of GTIDs.
func (s gtidSet) count() (n uint64) {
	for _, list := range s {
		for _, i := range list {
			n += i.last - i.first + 1
		}
	}
	return n
}

// meets reports whether both have a GTID of the same origin.
func (s gtidSet) meets(other gtidSet) bool {
	for origin := range s {
		if other[origin] != nil {
			return true
		}
	}
	return false
}

func (s gtidSet) String() string { return string(s.append(nil)) }

// append writes the set as servers write it, origins in order.
func (s gtidSet) append(dst []byte) []byte {
	for k, origin := range slices.Sorted(maps.Keys(s)) {
		if k > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, origin...)
		for _, i := range s[origin] {
			dst = append(dst, ':')
			dst = strconv.AppendUint(dst, i.first, 10)
			if i.last > i.first {
				dst = append(dst, '-')
				dst = strconv.AppendUint(dst, i.last, 10)
			}
		}
	}
	return dst
}

// domainGTID is a GTID of MariaDB.
type domainGTID struct {
	domain uint32
	server uint32
	number uint64
}

func (g domainGTID) append(dst []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(g.domain), 10)
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, uint64(g.server), 10)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, g.number, 10)
}

func (g domainGTID) String() string { return string(g.append(nil)) }

func parseDomainGTID(text string) (domainGTID, error) {
	var g domainGTID
	fields := strings.Split(text, "-")
	if len(fields) != 3 {
		return g, errGTID
	}
	domain, err1 := strconv.ParseUint(fields[0], 10, 32)
	server, err2 := strconv.ParseUint(fields[1], 10, 32)
	number, err3 := strconv.ParseUint(fields[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return g, errGTID
	}
	return domainGTID{uint32(domain), uint32(server), number}, nil
}

// parseDomainGTIDs reads a list of MariaDB's GTIDs, as in gtid_binlog_state: several of one domain may be in it.
func parseDomainGTIDs(text string) ([]domainGTID, error) {
	var list []domainGTID
	for part := range strings.SplitSeq(unspaced(text), ",") {
		if part == "" {
			continue
		}
		g, err := parseDomainGTID(part)
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}

// domainSet is a position of MariaDB: the last GTID of each domain, ascending by domain.
type domainSet []domainGTID

func parseDomainSet(text string) (domainSet, error) {
	list, err := parseDomainGTIDs(text)
	if err != nil {
		return nil, err
	}
	var set domainSet
	for _, g := range list {
		set = set.with(g)
	}
	return set, nil
}

// with returns the set with g as the last of its domain; s is changed.
func (s domainSet) with(g domainGTID) domainSet {
	for i := range s {
		if s[i].domain == g.domain {
			s[i] = g
			return s
		}
	}
	s = append(s, g)
	slices.SortFunc(s, func(a, b domainGTID) int { return int(int64(a.domain) - int64(b.domain)) })
	return s
}

func (s domainSet) of(domain uint32) (domainGTID, bool) {
	for _, g := range s {
		if g.domain == domain {
			return g, true
		}
	}
	return domainGTID{}, false
}

func (s domainSet) String() string {
	var dst []byte
	for i, g := range s {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = g.append(dst)
	}
	return string(dst)
}

// parseFilePlace reads file:position, the place of a server without GTIDs.
func parseFilePlace(text string) (filePlace, error) {
	i := strings.LastIndexByte(text, ':')
	if i <= 0 {
		return filePlace{}, fmt.Errorf("%q is no file:position", text)
	}
	pos, err := strconv.ParseUint(text[i+1:], 10, 64)
	if err != nil {
		return filePlace{}, fmt.Errorf("%q is no file:position", text)
	}
	return filePlace{file: text[:i], pos: pos}, nil
}

func (p filePlace) String() string { return p.file + ":" + strconv.FormatUint(p.pos, 10) }

// errFileNumber is the error of a log whose files are not numbered, which no server writes.
var errFileNumber = errors.New("the log's file has no number in its name")

// number orders places of one server: the number in the file's name, and the position in it, which may be beyond 4 GB for
// a transaction that is.
func (p filePlace) number() (uint64, error) {
	i := strings.LastIndexByte(p.file, '.')
	n, err := strconv.ParseUint(p.file[i+1:], 10, 24)
	if i < 0 || err != nil || p.pos >= 1<<40 {
		return 0, errFileNumber
	}
	return n<<40 | p.pos, nil
}

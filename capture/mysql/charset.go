package mysql

import (
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// charsets maps the id of a collation to the name of its charset.
type charsets map[uint64]string

// transcoder appends the UTF-8 of a text in another charset. What the charset does not have becomes U+FFFD.
type transcoder func(dst, src []byte) []byte

// transcoders are the charsets that can be read. nil: the bytes are UTF-8 as they are.
var transcoders = map[string]transcoder{
	"utf8mb4": nil, "utf8mb3": nil, "utf8": nil, "ascii": nil,
	"ucs2": ucs2, "utf16": utf16BE, "utf16le": utf16LE, "utf32": utf32,

	"latin1": singleByte(charmap.Windows1252, nil),
	"latin2": singleByte(charmap.ISO8859_2, nil), "latin5": singleByte(charmap.ISO8859_9, nil),
	"latin7": singleByte(charmap.ISO8859_13, nil), "greek": singleByte(charmap.ISO8859_7, map[byte]rune{0xa1: 'ʽ', 0xa2: 'ʼ'}),
	"hebrew": singleByte(charmap.ISO8859_8, map[byte]rune{0xaf: '‾'}),
	"tis620": singleByte(charmap.Windows874, map[byte]rune{
		0x80: 0x80, 0x85: 0x85, 0x91: 0x91, 0x92: 0x92, 0x93: 0x93, 0x94: 0x94, 0x95: 0x95, 0x96: 0x96, 0x97: 0x97, 0xa0: utf8.RuneError,
	}),
	"cp1250": singleByte(charmap.Windows1250, nil), "cp1251": singleByte(charmap.Windows1251, nil),
	"cp1256": singleByte(charmap.Windows1256, nil), "cp1257": singleByte(charmap.Windows1257, nil),
	"cp850": singleByte(charmap.CodePage850, nil), "cp852": singleByte(charmap.CodePage852, nil),
	"cp866": singleByte(charmap.CodePage866, map[byte]rune{0xfc: 'ⁿ', 0xfd: '²'}), "koi8r": singleByte(charmap.KOI8R, nil),
	"koi8u": singleByte(charmap.KOI8U, map[byte]rune{0x95: '•', 0xae: '╝', 0xbe: '╬'}), "macroman": singleByte(charmap.Macintosh, nil),

	"gbk": doubleByte(simplifiedchinese.GBK, nil, nil), "euckr": doubleByte(korean.EUCKR, nil, nil),
	"gb2312": doubleByte(simplifiedchinese.GBK, nil, map[uint16]rune{0xa1a4: '・', 0xa1aa: '―'}),
	"sjis": doubleByte(japanese.ShiftJIS, nil, map[uint16]rune{
		0x815f: '\\', 0x8160: '〜', 0x8161: '‖', 0x817c: '−', 0x8191: '¢', 0x8192: '£', 0x81ca: '¬',
	}),
	"cp932": doubleByte(japanese.ShiftJIS, shiftJISPrivate, nil),
	"ujis": doubleByte(japanese.EUCJP, eucPrivate, map[uint16]rune{
		0xa1c0: '\\', 0xa1c1: '〜', 0xa1c2: '‖', 0xa1dd: '−', 0xa1f1: '¢', 0xa1f2: '£', 0xa2cc: '¬',
	}),
	"eucjpms": doubleByte(japanese.EUCJP, eucPrivate, nil),
}

// singleByte makes the transcoder of a charset of 256 characters. The servers take bytes below 0xa0 that a standard leaves
// undefined as they are; what else they see otherwise is in own.
func singleByte(m *charmap.Charmap, own map[byte]rune) transcoder {
	var table [256]rune
	for i := range table {
		table[i] = m.DecodeByte(byte(i))
		if table[i] == utf8.RuneError && i < 0xa0 {
			table[i] = rune(i)
		}
	}
	for b, r := range own {
		table[b] = r
	}
	return func(dst, src []byte) []byte {
		for _, b := range src {
			if r := table[b]; r < utf8.RuneSelf {
				dst = append(dst, byte(r)) //nolint:gosec // below utf8.RuneSelf
			} else {
				dst = utf8.AppendRune(dst, r)
			}
		}
		return dst
	}
}

// doubleByte makes the transcoder of a charset of one and two bytes, and three after 0x8f in the Japanese EUC. private
// gives the characters that organisations made for themselves; what else the servers see otherwise is in own; private gives 0 for all others. The
// table is made when it is first needed.
func doubleByte(e encoding.Encoding, private func(lead, trail byte) rune, own map[uint16]rune) transcoder {
	type tables struct {
		single [256]rune
		double [1 << 16]rune
	}
	made := sync.OnceValue(func() *tables {
		var t tables
		decoder := e.NewDecoder()
		decode := func(code ...byte) rune {
			text, err := decoder.Bytes(code)
			r, size := utf8.DecodeRune(text)
			if err != nil || size != len(text) {
				return utf8.RuneError
			}
			return r
		}
		for lead := range 256 {
			t.single[lead] = decode(byte(lead))
			for trail := range 256 {
				r := decode(byte(lead), byte(trail))
				if private != nil {
					if own := private(byte(lead), byte(trail)); own != 0 {
						r = own
					}
				}
				t.double[lead<<8|trail] = r
			}
		}
		for code, r := range own {
			t.double[code] = r
		}
		return &t
	})
	return func(dst, src []byte) []byte {
		t := made()
		for len(src) > 0 {
			r, n := t.single[src[0]], 1
			if r == utf8.RuneError && len(src) > 1 {
				r, n = t.double[uint16(src[0])<<8|uint16(src[1])], 2
			}
			if e == japanese.EUCJP && src[0] == 0x8f && len(src) > 2 {
				n = 3
				text, err := e.NewDecoder().Bytes(src[:n])
				if r, _ = utf8.DecodeRune(text); err != nil {
					r = utf8.RuneError
				}
			}
			dst = utf8.AppendRune(dst, r)
			src = src[n:]
		}
		return dst
	}
}

// shiftJISPrivate are Windows' 1880 characters for private use.
func shiftJISPrivate(lead, trail byte) rune {
	if lead < 0xf0 || lead > 0xf9 || trail < 0x40 || trail > 0xfc || trail == 0x7f {
		return 0
	}
	if trail > 0x7f {
		trail--
	}
	return 0xe000 + rune(lead-0xf0)*188 + rune(trail-0x40)
}

// eucPrivate are the 940 characters for private use of the Japanese EUC.
func eucPrivate(lead, trail byte) rune {
	if lead < 0xf5 || lead == 0xff || trail < 0xa1 || trail == 0xff {
		return 0
	}
	return 0xe000 + rune(lead-0xf5)*94 + rune(trail-0xa1)
}

func ucs2(dst, src []byte) []byte {
	for ; len(src) >= 2; src = src[2:] {
		dst = utf8.AppendRune(dst, rune(src[0])<<8|rune(src[1]))
	}
	return tail(dst, src)
}

func utf16BE(dst, src []byte) []byte {
	return appendUTF16(dst, src, func(b []byte) rune { return rune(b[0])<<8 | rune(b[1]) })
}

func utf16LE(dst, src []byte) []byte {
	return appendUTF16(dst, src, func(b []byte) rune { return rune(b[1])<<8 | rune(b[0]) })
}

func appendUTF16(dst, src []byte, unit func([]byte) rune) []byte {
	for len(src) >= 2 {
		r := unit(src)
		src = src[2:]
		if utf16.IsSurrogate(r) {
			pair := utf8.RuneError
			if len(src) >= 2 {
				pair = utf16.DecodeRune(r, unit(src))
			}
			if pair != utf8.RuneError {
				src = src[2:]
			}
			r = pair
		}
		dst = utf8.AppendRune(dst, r)
	}
	return tail(dst, src)
}

func utf32(dst, src []byte) []byte {
	for ; len(src) >= 4; src = src[4:] {
		r := utf8.RuneError
		if n := big(src[:4]); n <= utf8.MaxRune {
			r = rune(n)
		}
		dst = utf8.AppendRune(dst, r)
	}
	return tail(dst, src)
}

// tail appends what stands for an incomplete character.
func tail(dst, src []byte) []byte {
	if len(src) > 0 {
		return utf8.AppendRune(dst, utf8.RuneError)
	}
	return dst
}

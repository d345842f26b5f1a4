package mysql

import (
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

// charsets maps the id of a collation to the name of its charset.
type charsets map[uint64]string

// transcoder appends the UTF-8 of a text in another charset. What the charset does not have becomes U+FFFD.
type transcoder func(dst, src []byte) []byte

// transcoders are the charsets that can be read. nil: the bytes are UTF-8 as they are.
var transcoders = map[string]transcoder{
	"utf8mb4": nil, "utf8mb3": nil, "utf8": nil, "ascii": nil,
	"latin1": singleByte(latin1()),
	"ucs2":   ucs2, "utf16": utf16BE, "utf16le": utf16LE, "utf32": utf32,
}

// latin1 is MySQL's latin1: Windows code page 1252, with the five bytes that it leaves undefined taken as they are.
func latin1() *[256]rune {
	table := runesOf(charmap.Windows1252)
	for _, b := range [...]byte{0x81, 0x8d, 0x8f, 0x90, 0x9d} {
		table[b] = rune(b)
	}
	return table
}

func runesOf(m *charmap.Charmap) *[256]rune {
	var table [256]rune
	for i := range table {
		table[i] = m.DecodeByte(byte(i))
	}
	return &table
}

func singleByte(table *[256]rune) transcoder {
	return func(dst, src []byte) []byte {
		for _, b := range src {
			dst = utf8.AppendRune(dst, table[b])
		}
		return dst
	}
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

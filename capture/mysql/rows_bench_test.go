package mysql

import (
	"maps"
	"testing"

	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// BenchmarkRows reads the recorded rows, every column of them, beside go-mysql's decoder, and unmapped.
func BenchmarkRows(b *testing.B) {
	type event struct {
		kind           replication.EventType
		tableMap, rows []byte
	}
	var events []event
	recorded(b, func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) {
		if !mariadb {
			events = append(events, event{kind, tableMap, rows})
		}
	})
	b.Run("lethe", func(b *testing.B) {
		needs := allNeeds(events[0].tableMap, false)
		for _, e := range events {
			maps.Copy(needs, allNeeds(e.tableMap, false))
		}
		d := newRowDecoder(rowOptions{Needs: needs, Charsets: testCharsets})
		benchmarkDecoder(b, d, func(d *rowDecoder, read func(*capture.Change) error) error {
			for _, e := range events {
				if err := d.tableMap(e.tableMap); err != nil {
					return err
				}
				if err := d.rows(e.kind, e.rows, read); err != nil {
					return err
				}
			}
			return nil
		})
	})
	b.Run("unmapped", func(b *testing.B) {
		d := newRowDecoder(rowOptions{Charsets: testCharsets})
		benchmarkDecoder(b, d, func(d *rowDecoder, read func(*capture.Change) error) error {
			for _, e := range events {
				if err := d.tableMap(e.tableMap); err != nil {
					return err
				}
				if err := d.rows(e.kind, e.rows, read); err != nil {
					return err
				}
			}
			return nil
		})
	})
	b.Run("go-mysql", func(b *testing.B) {
		o, err := newOracle(false)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			for _, e := range events {
				if _, ok := o.rows(e.tableMap, e.kind, e.rows); !ok {
					b.Fatal("an event that go-mysql does not read")
				}
			}
		}
	})
}

func benchmarkDecoder(b *testing.B, d *rowDecoder, pass func(*rowDecoder, func(*capture.Change) error) error) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if err := pass(d, func(*capture.Change) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

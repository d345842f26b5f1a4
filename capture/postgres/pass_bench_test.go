package postgres_test

import (
	"testing"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// BenchmarkChunks reads a table of 200,000 rows in chunks of 1,000: as a pass does, and as a client without its checks would,
// with the same statement. An operation is the whole table.
func BenchmarkChunks(b *testing.B) {
	e := newEnv(b, testenv.SharedPostgres(b, 15))
	e.exec(b, "CREATE TABLE customer (id bigint PRIMARY KEY, status text, no_marketing boolean, restricted_until timestamptz, email text)",
		"INSERT INTO customer SELECT i, 'A', false, NULL, 'c' || i || '@example.org' FROM generate_series(1, 200000) i", "ANALYZE customer")
	e.need("public.customer", "id", "status", "no_marketing", "restricted_until", "email")
	e.publish(b)
	src := e.source(b)
	r := capturetest.Start(b, src, nil, &capturetest.Recorder{CountOnly: true})
	if _, err := src.PassTable(b.Context(), "public.customer"); err != nil {
		b.Fatal(err)
	}
	b.Run("pass", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rows := 0
			for after := [][]byte(nil); ; {
				last, done, err := src.ReadChunk(b.Context(), capture.ChunkRequest{Table: "public.customer", After: after, Limit: 1000}, func(*capture.Change) error {
					rows++
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				if after = last; done {
					break
				}
			}
			if rows != 200_000 {
				b.Fatal(rows)
			}
		}
	})
	b.Run("direct", func(b *testing.B) {
		pg := e.pg.Connect(b, e.db).PgConn()
		for b.Loop() {
			rows, after := 0, []byte("0")
			for n := 1000; n == 1000; {
				n = 0
				answer := pg.ExecParams(b.Context(), "SELECT id, status, no_marketing, restricted_until, email FROM customer WHERE id > $1::bigint ORDER BY id LIMIT 1000",
					[][]byte{after}, nil, nil, nil)
				for answer.NextRow() {
					n++
					after = append(after[:0], answer.Values()[0]...)
				}
				if _, err := answer.Close(); err != nil {
					b.Fatal(err)
				}
				rows += n
			}
			if rows != 200_000 {
				b.Fatal(rows)
			}
		}
	})
	_ = r.Stop(b) // context.Canceled
}

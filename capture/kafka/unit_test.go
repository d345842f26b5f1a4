package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"pgregory.net/rapid"

	"lethe/capture"
)

// The vectors are those of Kafka's own UtilsTest.testMurmur2.
func TestMurmur2IsJavas(t *testing.T) {
	for data, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(data))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", data, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 0, 80).Draw(t, "key")
		n := rapid.IntRange(1, 100).Draw(t, "partitions")
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		if key == nil {
			key = []byte{}
		}
		if want := (kgo.Murmur2Balancer{}).Balance(kgo.Message{Key: key}, all...); partitionOf(key, n) != want {
			t.Fatalf("partition %d, want %d", partitionOf(key, n), want)
		}
	})
}

// TestBatchesAreWhatKafkaReads: kafka-go's decoder, which checks the checksum, is the oracle of our encoder.
func TestBatchesAreWhatKafkaReads(t *testing.T) {
	p, err := NewPublisher(Options{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		u := newUnit(1, 64<<10, 1<<20)
		type rec struct{ key, value []byte }
		var want []rec
		for range rapid.IntRange(1, 400).Draw(t, "records") {
			r := rec{value: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value")}
			var err error
			if rapid.Bool().Draw(t, "keyed") {
				r.key = append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "key")...)
				err = u.Append(r.key, r.value)
			} else {
				err = u.AppendAll(r.value)
			}
			if errors.Is(err, capture.ErrUnitFull) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, r)
		}
		pack := p.pack
		if rapid.Bool().Draw(t, "plain") {
			pack = nil
		}
		now := time.UnixMilli(1_790_000_000_123)
		u.seal(now, pack)
		first := bytes.Clone(u.batches[0].bytes())
		u.seal(now.Add(time.Hour), pack)
		if !bytes.Equal(first, u.batches[0].bytes()) {
			t.Fatal("a unit that is sent again differs")
		}
		if len(u.batches[0].buf) > 64<<10 {
			t.Fatalf("a batch of %d bytes", len(u.batches[0].buf))
		}
		var set protocol.RecordSet
		if _, err := set.ReadFrom(bytes.NewReader(first)); err != nil {
			t.Fatal(err)
		}
		for i, w := range want {
			got, err := set.Records.ReadRecord()
			if err != nil {
				t.Fatalf("record %d of %d: %v", i, len(want), err)
			}
			k, _ := protocol.ReadAll(got.Key)
			v, _ := protocol.ReadAll(got.Value)
			if (got.Key == nil) != (w.key == nil) || !bytes.Equal(k, w.key) || !bytes.Equal(v, w.value) ||
				got.Offset != int64(i) || !got.Time.Equal(now) {
				t.Fatalf("record %d differs: %+v", i, got)
			}
		}
		if _, err := set.Records.ReadRecord(); err == nil {
			t.Fatal("more records than were added")
		}
	})
}

func TestUnitSaysWhenItIsFull(t *testing.T) {
	u := newUnit(2, 10_000, 15_000)
	value := make([]byte, 100)
	full, n := 0, 0
	for ; ; n++ {
		if u.Full() && full == 0 {
			full = n
		}
		if err := u.Append(fmt.Appendf(nil, "k%d", n), value); err != nil {
			if !errors.Is(err, capture.ErrUnitFull) {
				t.Fatal(err)
			}
			break
		}
	}
	if full == 0 || n-full < 10 {
		t.Errorf("full after %d records and no room after %d: what a source has read would not fit", full, n)
	}
	if u.Bytes() > 15_300 {
		t.Errorf("%d bytes", u.Bytes())
	}
	u.Reset()
	if u.Bytes() != 0 || u.Full() {
		t.Error("a unit is not empty after Reset")
	}
}

func BenchmarkAppendAndSeal(b *testing.B) {
	u := newUnit(12, defaultBatchBytes, 4<<20)
	keys := make([][]byte, 1000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "%052d", i*7919)
	}
	value := make([]byte, 330)
	now := time.Now()
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for i := 0; b.Loop(); i++ {
		if err := u.Append(keys[i%1000], value); err != nil {
			u.seal(now, nil)
			u.Reset()
		}
	}
}

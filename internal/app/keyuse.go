package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"

	"lethe/capture/checkpoint"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/schema"
)

// KeyInUse returns the question that keys.Retire asks before it takes a key of the keyset out: whether the retained part
// of the events topic or a replica still needs it. For the seal keyset the whole topic is read.
func KeyInUse(ctx context.Context, cfg *config.Config, keyset string) keys.InUse {
	return func(id uint32) (string, error) {
		if keyset == "seal" {
			return sealInUse(ctx, cfg, id)
		}
		if replica, ok := strings.CutPrefix(keyset, "proof-"); ok {
			return proofInUse(ctx, cfg, replica, id)
		}
		if keyset == "match" {
			return matchInUse(ctx, cfg, id)
		}
		return "", nil
	}
}

func sealInUse(ctx context.Context, cfg *config.Config, id uint32) (string, error) {
	for _, name := range ReplicaNames(cfg) {
		var subjects, parked int
		err := withDesk(ctx, cfg, cfg.Replicas[name], func(d desk) (err error) {
			subjects, parked, err = d.SealedUnder(ctx, id, keys.SealedKeyID)
			return err
		})
		switch {
		case err != nil:
			return "", err
		case subjects > 0:
			return fmt.Sprintf("replica %s: %d subjects (its sink seals them again within the hour after it was restarted with the new key)", name, subjects), nil
		case parked > 0:
			return fmt.Sprintf("replica %s: %d parked events (`lethe dead-letters list`)", name, parked), nil
		}
	}
	if used, err := sealedCases(ctx, cfg, id); used != "" || err != nil {
		return used, err
	}
	return usedInTopic(ctx, cfg, func(value []byte) bool {
		parts, err := schema.SealedParts(value)
		if err != nil {
			return false // no event of ours: no key opens it
		}
		return slices.ContainsFunc(parts, func(part []byte) bool {
			key, err := keys.SealedKeyID(part)
			return err == nil && key == id
		})
	})
}

// mostCases bounds the cases of which capture's own record is looked at for a key.
const mostCases = 1 << 20

// sealedCases looks at the cases that capture still asks the source about. Each is sealed anew when it is asked about next.
func sealedCases(ctx context.Context, cfg *config.Config, id uint32) (string, error) {
	conn, err := connectKafka(cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	list, _, err := checkpoint.NewReadbacks(checkpoint.Options{Conn: conn, Source: cfg.Name}).Load(ctx, mostCases)
	if err != nil {
		return "", err
	}
	n := 0
	for i := range list {
		if key, err := keys.SealedKeyID(list[i].Subject); err == nil && key == id {
			n++
		}
	}
	if n == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s: %d cases that capture asks the source about (it seals each again when it asks next)", conn.CheckpointsTopic(), n), nil
}

// matchInUse looks for what could be found by a version of the match key alone. While two versions are live every event carries both, so a pass after
// the rotation leaves only those behind whom the source does not tell of any more: erased persons, and past contact points. They cannot be keyed
// again, because nobody has their values.
func matchInUse(ctx context.Context, cfg *config.Config, id uint32) (string, error) {
	primary, err := primaryKey(cfg, "match")
	if err != nil {
		return "", err
	}
	for _, name := range ReplicaNames(cfg) {
		var contacts, blocks int
		err := withDesk(ctx, cfg, cfg.Replicas[name], func(d desk) (err error) {
			contacts, blocks, err = d.MatchedUnder(ctx, id, primary)
			return err
		})
		switch {
		case err != nil:
			return "", err
		case contacts+blocks > 0:
			return fmt.Sprintf("replica %s: %d contact points and %d withdrawals about one are known under no newer key (`lethe snapshot` keys again who is "+
				"in the source; the rest needs the key until its entries end)", name, contacts, blocks), nil
		}
	}
	return usedInTopic(ctx, cfg, func(value []byte) bool {
		all, err := schema.MatchKeys(value)
		of := func(id uint32) bool {
			return slices.ContainsFunc(all, func(k schema.MatchKey) bool { return k.KeyID == id })
		}
		return err == nil && of(id) && !of(primary)
	})
}

func primaryKey(cfg *config.Config, keyset string) (uint32, error) {
	sets, err := keys.List(cfg.Keys.Dir)
	if err != nil {
		return 0, err
	}
	for _, set := range sets {
		for _, k := range set.Keys {
			if set.Name == keyset && k.Primary {
				return k.ID, nil
			}
		}
	}
	return 0, fmt.Errorf("keyset %s has no primary key", keyset)
}

// usedInTopic says where the retained part of the events topic has an event that uses a key.
func usedInTopic(ctx context.Context, cfg *config.Config, uses func(value []byte) bool) (string, error) {
	conn, err := connectKafka(cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ends, err := partitionEnds(ctx, conn)
	if err != nil {
		return "", err
	}
	for _, p := range ends {
		used, err := usedInPartition(ctx, conn, p, uses)
		if err != nil {
			return "", fmt.Errorf("reading %s[%d]: %w", conn.EventsTopic(), p.Partition, err)
		}
		if used >= 0 {
			return fmt.Sprintf("%s: an event at offset %d of partition %d (it leaves with the topic's retention)", conn.EventsTopic(), used, p.Partition), nil
		}
	}
	return "", nil
}

// usedInPartition returns the offset of an event that uses the key, -1 where there is none.
func usedInPartition(ctx context.Context, conn *kafkaconn.Conn, p PartitionEnd, uses func(value []byte) bool) (int64, error) {
	client := conn.Client()
	for next := p.First; next < p.End; {
		res, err := client.Fetch(ctx, &kafka.FetchRequest{
			Topic: conn.EventsTopic(), Partition: p.Partition, Offset: next, MinBytes: 1, MaxBytes: 4 << 20,
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return -1, err
		}
		last, used, err := scanRecords(res.Records, next, uses)
		if err != nil || used >= 0 {
			return used, err
		}
		if last < next {
			return -1, fmt.Errorf("no record at offset %d", next)
		}
		next = last + 1
	}
	return -1, nil
}

func scanRecords(records kafka.RecordReader, from int64, uses func(value []byte) bool) (last, used int64, err error) {
	last, used = -1, -1
	for {
		rec, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return last, used, nil
		}
		if err != nil {
			return last, used, err
		}
		last = max(last, rec.Offset)
		if rec.Offset < from || rec.Value == nil {
			continue
		}
		value, err := kafka.ReadAll(rec.Value)
		if err != nil {
			return last, used, err
		}
		if uses(value) {
			return last, rec.Offset, nil
		}
	}
}

func proofInUse(ctx context.Context, cfg *config.Config, replica string, id uint32) (string, error) {
	if cfg.Replicas[replica] == nil {
		return "", fmt.Errorf("%w: whether its receipts need the key cannot be looked at", errNoReplica(cfg, replica))
	}
	var used bool
	err := withDesk(ctx, cfg, cfg.Replicas[replica], func(d desk) (err error) {
		used, err = d.SignedUnder(ctx, id)
		return err
	})
	if err != nil || !used {
		return "", err
	}
	return fmt.Sprintf("replica %s: receipts are signed with it, and could not be verified without it", replica), nil
}

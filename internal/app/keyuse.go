package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/segmentio/kafka-go"

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
		// No value under a match key is stored by this version: contact points are a later one's.
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
		used, err := sealedInPartition(ctx, conn, p, id)
		if err != nil {
			return "", fmt.Errorf("reading %s[%d]: %w", conn.EventsTopic(), p.Partition, err)
		}
		if used >= 0 {
			return fmt.Sprintf("%s: an event at offset %d of partition %d (it leaves with the topic's retention)", conn.EventsTopic(), used, p.Partition), nil
		}
	}
	return "", nil
}

// sealedInPartition returns the offset of an event that is sealed under the key, -1 where there is none.
func sealedInPartition(ctx context.Context, conn *kafkaconn.Conn, p PartitionEnd, id uint32) (int64, error) {
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
		last, used, err := scanSealed(res.Records, next, id)
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

func scanSealed(records kafka.RecordReader, from int64, id uint32) (last, used int64, err error) {
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
		parts, err := schema.SealedParts(value)
		if err != nil {
			continue // no event of ours: no key opens it
		}
		for _, part := range parts {
			if key, err := keys.SealedKeyID(part); err == nil && key == id {
				return last, rec.Offset, nil
			}
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

package kafka

import "encoding/binary"

// partitionOf is Java's default partitioner for a record with a key: toPositive(murmur2(key)) % partitions. Any other
// producer of the same contract finds the same partition.
func partitionOf(key []byte, partitions int) int {
	return int(murmur2(key)&0x7fffffff) % partitions
}

// murmur2 is org.apache.kafka.common.utils.Utils.murmur2.
func murmur2(data []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(data)) //nolint:gosec // keys are short
	for len(data) >= 4 {
		k := binary.LittleEndian.Uint32(data) * m
		k ^= k >> r
		h = h*m ^ k*m
		data = data[4:]
	}
	switch len(data) {
	case 3:
		h = (h ^ uint32(data[2])<<16 ^ uint32(data[1])<<8 ^ uint32(data[0])) * m
	case 2:
		h = (h ^ uint32(data[1])<<8 ^ uint32(data[0])) * m
	case 1:
		h = (h ^ uint32(data[0])) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

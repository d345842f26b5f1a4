package schema

import (
	"embed"
	"fmt"
)

//go:embed avsc/*.avsc
var avscFiles embed.FS

// Record numbers of those that are no events; the events' are their Type.
const (
	recordReceipt = int(TypeLast) + 1 + iota
	recordSignedReceipt
	recordReconsentDue
	recordCount
)

var (
	// headers holds the single-object header of each record, fingerprints the record of each fingerprint as found in it.
	headers      [recordCount][headerSize]byte
	fingerprints = map[[headerSize]byte]int{}
)

func recordName(record int) string {
	switch record {
	case recordReceipt:
		return "Receipt"
	case recordSignedReceipt:
		return "SignedReceipt"
	case recordReconsentDue:
		return "ReconsentDue"
	}
	return typeNames[record]
}

// The embedded schemas are part of the program: one that cannot be read is a broken build.
func init() {
	for record := int(TypeSubjectErasure); record < recordCount; record++ {
		text, err := avsc(recordName(record))
		if err == nil {
			headers[record], err = objectHeader(text)
		}
		if err != nil {
			panic(fmt.Sprintf("embedded schema %s: %v", recordName(record), err))
		}
		fingerprints[headers[record]] = record
	}
}

func avsc(name string) ([]byte, error) { return avscFiles.ReadFile("avsc/" + name + ".avsc") }

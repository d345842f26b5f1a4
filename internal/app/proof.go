package app

import (
	"fmt"

	"lethe/internal/keys"
	"lethe/schema"
)

// CaseOf returns the case id of an erasure of a subject, given its CRM key, column by column. It needs the subject key:
// where the process runs sinks only it is not there.
func (a *App) CaseOf(key ...string) (schema.CaseID, error) {
	ring, err := keys.Open(a.cfg.Keys.Dir, keys.RoleCapture)
	if err != nil {
		return schema.CaseID{}, err
	}
	parts := make([][]byte, len(key))
	for i, k := range key {
		parts[i] = []byte(k)
	}
	ids := schema.NewIdentifiers(ring.Subject(), a.cfg.Name)
	return ids.CaseID(ids.SubjectRef(schema.CanonicalKey(nil, parts...))), nil
}

// VerifyReceipt decodes a stored receipt and checks its signature with the public keys.
func (a *App) VerifyReceipt(stored []byte) (*schema.Receipt, error) {
	ring, err := keys.Open(a.cfg.Keys.Dir, keys.RoleLedger)
	if err != nil {
		return nil, err
	}
	signed, err := schema.DecodeSignedReceipt(stored)
	if err != nil {
		return nil, fmt.Errorf("decoding a receipt: %w", err)
	}
	return schema.VerifyReceipt(ring.Verifier(), signed)
}

package postgres

import "github.com/jackc/pgx/v5/pgtype"

// byteArray and textArray are bytea[] and text[] parameters. Those of pgx box every element, which for a batch of a
// thousand is ten thousand allocations; these hand out pointers into the slice. A nil []byte is NULL.
type (
	byteArray   [][]byte
	textArray   []string
	byteElement []byte
	textElement string
)

// Dimensions implements pgtype.ArrayGetter.
func (a byteArray) Dimensions() []pgtype.ArrayDimension { return dimensions(len(a), a == nil) }

// Index implements pgtype.ArrayGetter.
func (a byteArray) Index(i int) any { return (*byteElement)(&a[i]) }

// IndexType implements pgtype.ArrayGetter.
func (a byteArray) IndexType() any { return (*byteElement)(nil) }

// BytesValue implements pgtype.BytesValuer.
func (e *byteElement) BytesValue() ([]byte, error) { return *e, nil }

// Dimensions implements pgtype.ArrayGetter.
func (a textArray) Dimensions() []pgtype.ArrayDimension { return dimensions(len(a), a == nil) }

// Index implements pgtype.ArrayGetter.
func (a textArray) Index(i int) any { return (*textElement)(&a[i]) }

// IndexType implements pgtype.ArrayGetter.
func (a textArray) IndexType() any { return (*textElement)(nil) }

// TextValue implements pgtype.TextValuer.
func (e *textElement) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: string(*e), Valid: true}, nil
}

func dimensions(n int, null bool) []pgtype.ArrayDimension {
	if null {
		return nil
	}
	return []pgtype.ArrayDimension{{Length: int32(n), LowerBound: 1}} //nolint:gosec // a batch has thousands of records
}

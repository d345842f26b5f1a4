package schema

import (
	"encoding"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func checkEnum[E interface {
	~uint8
	fmt.Stringer
	encoding.TextMarshaler
}](t *testing.T, texts names, parse func(string) (E, error)) {
	t.Helper()
	for i, want := range texts {
		if want == "" {
			continue
		}
		e := E(i)
		text, err := e.MarshalText()
		if e.String() != want || string(text) != want || err != nil {
			t.Errorf("%d prints as %s, want %s", i, e, want)
		}
		if got, err := parse(want); err != nil || got != e {
			t.Errorf("%s reads as %v, %v", want, got, err)
		}
	}
	if s := E(200).String(); !strings.Contains(s, "200") {
		t.Errorf("an unknown value prints as %s", s)
	}
	for _, bad := range []string{"", "canary", strings.ToUpper(texts[1]) + " "} {
		if _, err := parse(bad); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("reading %q: %v", bad, err)
		}
	}
}

func TestEnumsHaveTexts(t *testing.T) {
	checkEnum(t, typeNames, ParseType)
	checkEnum(t, kindNames, ParseKind)
	checkEnum(t, phase2Names, ParsePhase2)
	checkEnum(t, decisionNames, ParseDecision)
	checkEnum(t, consentNames, ParseConsentState)
	checkEnum(t, contactNames, ParseContactKind)
	checkEnum(t, receiptNames, ParseReceiptState)
	checkEnum(t, evidenceNames, ParseEvidenceLevel)
	for i, s := range []fmt.Stringer{TypeSourceReport, KindSnapshot, Phase2OnDecision, DecisionRelease, ConsentInvalidated, ContactIdentity, ReceiptCancelled, EvidencePhysicallyGone} {
		if want := []string{"SourceReport", "snapshot", "on_decision", "release", "invalidated", "identity", "cancelled", "E4"}[i]; s.String() != want {
			t.Errorf("the last constant prints as %s, want %s", s, want)
		}
	}
	if c := Channels(); len(c) != 7 || c[0] != "email" {
		t.Errorf("channels %v", c)
	}
}

// The numbers that the encoder writes are the places of the symbols in the schemas.
func TestSymbolsAreTheConstants(t *testing.T) {
	want := map[string][]string{
		"EventKind": kindNames, "Phase2": phase2Names, "Decision": decisionNames, "Channel": channelNames, "ConsentState": dpvConsentStates,
		"ContactKind": contactNames, "EventType": typeSymbols, "Aspect": aspectNames, "ReceiptState": receiptNames, "EvidenceLevel": evidenceNames,
	}
	seen := map[string]bool{}
	for record := int(TypeSubjectErasure); record < recordCount; record++ {
		for _, f := range avscFields(t, record) {
			def, ok := f["type"].(map[string]any)
			if !ok || def["type"] != "enum" {
				continue
			}
			name, _ := def["name"].(string)
			seen[name] = true
			var got []string
			for _, s := range def["symbols"].([]any) {
				got = append(got, s.(string))
			}
			if !slices.Equal(got, want[name]) {
				t.Errorf("%s of %s: %v, want %v", name, recordName(record), got, want[name])
			}
		}
	}
	if len(seen) != len(want) {
		t.Errorf("enums %v", seen)
	}
	if len(dpvConsentStates) != len(consentNames) {
		t.Error("DPV's states and ours are not one to one")
	}
}

func avscFields(t *testing.T, record int) []map[string]any {
	t.Helper()
	text, err := avsc(recordName(record))
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Name, Namespace string
		Fields          []map[string]any
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Name != recordName(record) || r.Namespace != "lethe.v1" {
		t.Errorf("%s is named %s.%s", recordName(record), r.Namespace, r.Name)
	}
	return r.Fields
}

// One header for all events, and the sealed key at the end.
func TestEventsHaveOneHeader(t *testing.T) {
	const headerFields = 11
	var header string
	for record := int(TypeSubjectErasure); record <= int(TypeLast); record++ {
		fields := avscFields(t, record)
		b, err := json.Marshal(fields[:headerFields])
		if err != nil {
			t.Fatal(err)
		}
		if header == "" {
			header = string(b)
		}
		if string(b) != header {
			t.Errorf("%s has another header:\n%s\n%s", recordName(record), b, header)
		}
		if last := fields[len(fields)-1]; last["name"] != "sealed_key" || last["type"] != "bytes" {
			t.Errorf("%s ends with %v", recordName(record), last)
		}
	}
}

func TestOnlyGivenAndRenewedPermit(t *testing.T) {
	for i := range consentNames {
		s := ConsentState(i)
		if s.Permits() != (s == ConsentGiven || s == ConsentRenewedGiven) {
			t.Errorf("%s permits: %t", s, s.Permits())
		}
	}
}

// DESIGN section 7: the effective receipt is the one of the highest state, then attempt.
func TestRank(t *testing.T) {
	order := []ReceiptState{
		ReceiptPlanned, ReceiptNoMatch, ReceiptSuppressed, ReceiptAwaitingRelease, ReceiptHeld, ReceiptFailed, ReceiptApplied,
		ReceiptVerified, ReceiptCancelled,
	}
	for i := 1; i < len(order); i++ {
		if order[i].Rank() <= order[i-1].Rank() {
			t.Errorf("%s does not rank above %s", order[i], order[i-1])
		}
	}
	if ReceiptResurrected.Rank() != ReceiptVerified.Rank() {
		t.Error("the attempt must decide between verified and resurrected")
	}
	if ReceiptAmbiguous.Rank() != ReceiptNoMatch.Rank() {
		t.Error("what was decided last must decide between ambiguous and no_match")
	}
}

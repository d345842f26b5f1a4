package keys

import (
	"fmt"
	"regexp"
	"strings"
)

// Role says whose keys are opened or exported.
type Role string

// The roles. A sink's is RoleSink(its replica). The operator's command line holds everything.
const (
	RoleCapture  Role = "capture"
	RoleLedger   Role = "ledger"
	RoleOperator Role = "operator"
)

const sinkPrefix = "sink="

// RoleSink is the role of the sink of one replica; its text form is sink=NAME.
func RoleSink(replica string) Role { return Role(sinkPrefix + replica) }

// ParseRole reads capture, sink=NAME, ledger or operator.
func ParseRole(s string) (Role, error) {
	r := Role(s)
	if replica, ok := r.replica(); ok {
		return r, checkReplica(replica)
	}
	switch r {
	case RoleCapture, RoleLedger, RoleOperator:
		return r, nil
	}
	return "", fmt.Errorf("reading role %q: want capture, sink=REPLICA, ledger or operator", s)
}

func (r Role) replica() (string, bool) { return strings.CutPrefix(string(r), sinkPrefix) }

// The keysets. Those with a prefix exist once for each replica.
const (
	nameSubject  = "subject"
	nameMatch    = "match"
	nameSeal     = "seal"
	proofPrefix  = "proof-"
	pseudoPrefix = "replica-"
	publicSuffix = ".public"
	fileSuffix   = ".json"
)

var replicaForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// checkReplica keeps a name from pointing out of the folder.
func checkReplica(replica string) error {
	if !replicaForm.MatchString(replica) {
		return fmt.Errorf("replica name %q: want letters, digits, _ and -, at most 63", replica)
	}
	return nil
}

// kind says what a keyset is for, and so which keys are in it.
type kind uint8

const (
	kindNone kind = iota
	kindPRF
	kindAEAD
	kindSigning
	kindPublic
)

// parseName gives the kind of the named keyset and the replica it belongs to, if any.
func parseName(name string) (k kind, replica string, err error) {
	switch name {
	case nameSubject, nameMatch:
		return kindPRF, "", nil
	case nameSeal:
		return kindAEAD, "", nil
	}
	var ok bool
	if replica, ok = strings.CutPrefix(name, proofPrefix); ok {
		k = kindSigning
		if private, public := strings.CutSuffix(replica, publicSuffix); public {
			k, replica = kindPublic, private
		}
	} else if replica, ok = strings.CutPrefix(name, pseudoPrefix); ok {
		k = kindPRF
	}
	if k == kindNone || checkReplica(replica) != nil {
		return kindNone, "", fmt.Errorf("keyset %q: want subject, match, seal, proof-REPLICA or replica-REPLICA", name)
	}
	return k, replica, nil
}

// neverRotated gives the reason why a keyset keeps its key for ever, or "".
func neverRotated(name string) string {
	switch {
	case name == nameSubject:
		return "every subject_ref, event_id and case_id is made with it: another key would make strangers of all known " +
			"subjects, erased ones included; after a leak, migrate instead"
	case strings.HasPrefix(name, pseudoPrefix):
		return "the subjects in the replica's own tables are stored under it: another key would lose every fact and tombstone there"
	case strings.HasSuffix(name, publicSuffix):
		return "it is an export: rotate the proof keyset where its private keys are, and export again"
	}
	return ""
}

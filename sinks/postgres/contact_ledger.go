package postgres

// migrationContacts are the tables of contact points and of what stands about them, a part of migration2.
//
//   - contact has a row for each contact point of a subject that is not proven to be erased. An identity, the name in the subject's
//     own row, may have the same reference as a contact point of that row.
//   - contact_key keeps the values that a point had beside those that it has, and outlives the contact of an erased person: as
//     its tombstone, keyed under the replica's own key.
//   - contact_block holds withdrawals about a contact point, for whoever else holds it.
//   - touch is a queue that is only ever added to by others: its rows belong to the owner of part, who takes them away.
//   - finding has a row for each thing that somebody ought to know about a subject.
const migrationContacts = `
CREATE TABLE {s}.contact (
  ref         bytea NOT NULL,
  contact_ref bytea NOT NULL,
  kind        text NOT NULL CHECK (kind IN ('email', 'phone', 'postal', 'identity')),
  part        integer NOT NULL,
  past        boolean NOT NULL DEFAULT false,
  removed     boolean NOT NULL DEFAULT false,
  revived     boolean NOT NULL DEFAULT false,
  ord         bytea NOT NULL,
  event_id    bytea NOT NULL,
  since_ord   bytea NOT NULL,
  void_ord    bytea,
  void_at     timestamptz,
  void_event  bytea,
  PRIMARY KEY (ref, contact_ref, kind)
) WITH (fillfactor = 90);

CREATE TABLE {s}.contact_key (
  ref          bytea NOT NULL,
  contact_ref  bytea NOT NULL,
  value        bytea NOT NULL,
  type         text NOT NULL,
  key_id       bigint NOT NULL,
  norm_version bigint NOT NULL,
  standing     text NOT NULL CHECK (standing IN ('live', 'past', 'revived')),
  PRIMARY KEY (ref, contact_ref, value)
);
CREATE INDEX contact_key_value ON {s}.contact_key (value);

CREATE TABLE {s}.contact_block (
  value    bytea NOT NULL,
  scope    text COLLATE "C" NOT NULL,
  ref      bytea NOT NULL,
  ord      bytea NOT NULL,
  as_of    timestamptz,
  state    text NOT NULL,
  event_id bytea NOT NULL,
  PRIMARY KEY (value, scope, ref)
);
CREATE INDEX contact_block_ref ON {s}.contact_block (ref);

CREATE TABLE {s}.touch (
  id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  ref    bytea NOT NULL,
  part   integer NOT NULL,
  reason text NOT NULL CHECK (reason IN ('spread', 'again', 'consult', 'row')),
  at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX touch_due ON {s}.touch (part, at);

CREATE TABLE {s}.alias (
  ref          bytea NOT NULL,
  absorbed     bytea NOT NULL,
  ord          bytea NOT NULL,
  event_id     bytea NOT NULL,
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (ref, absorbed)
);
CREATE INDEX alias_absorbed ON {s}.alias (absorbed);

CREATE TABLE {s}.finding (
  ref      bytea NOT NULL,
  kind     text COLLATE "C" NOT NULL,
  scope    text COLLATE "C" NOT NULL,
  part     integer NOT NULL,
  event_id bytea NOT NULL,
  times    bigint NOT NULL DEFAULT 1,
  first_at timestamptz NOT NULL DEFAULT now(),
  last_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (ref, kind, scope)
);
CREATE INDEX finding_last ON {s}.finding (last_at);
`

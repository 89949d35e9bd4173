-- What an operator has said of peers while the node ran: JSON, as federation::policy::PeerOverride has it.
CREATE TABLE peer_overrides (
    domain        TEXT    NOT NULL PRIMARY KEY,
    said          TEXT    NOT NULL,
    changed_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Which leaves a user, a revoked key or a long silence concerns: the record itself is opaque. A group whose state only its
-- members can read (S17) would leave these columns empty.
ALTER TABLE group_members ADD COLUMN user_uri      TEXT;
ALTER TABLE group_members ADD COLUMN client_key    BLOB;
ALTER TABLE group_members ADD COLUMN user_key      BLOB;
ALTER TABLE group_members ADD COLUMN heard_at_ms   INTEGER;
ALTER TABLE group_members ADD COLUMN expires_at_ms INTEGER;
CREATE INDEX group_members_by_user ON group_members (user_uri, group_id);
CREATE INDEX group_members_by_client_key ON group_members (client_key);
CREATE INDEX group_members_by_user_key ON group_members (user_key);
CREATE INDEX group_members_by_silence ON group_members (heard_at_ms);
CREATE INDEX group_members_by_expiry ON group_members (expires_at_ms);

-- A deleted group answers so for a while, then is gone.
ALTER TABLE groups ADD COLUMN closed_at_ms INTEGER;
CREATE INDEX groups_by_closing ON groups (closed_at_ms) WHERE closed_at_ms IS NOT NULL;

-- The newest credential_status of each domain (X1), and whether its revocations have been applied to the groups here.
CREATE TABLE credential_status (
    domain  TEXT    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    status  BLOB    NOT NULL,
    applied INTEGER NOT NULL
) WITHOUT ROWID;

-- Which version of our own each hub that delivers to our users has taken.
CREATE TABLE status_pushes (
    hub     TEXT    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;

-- What a queue holds, counted, so that its bounds are looked at without walking it (X4). Markers count as entries of no octets.
ALTER TABLE queues ADD COLUMN entries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN octets  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN markers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queue_entries ADD COLUMN octets INTEGER NOT NULL DEFAULT 0;
UPDATE queue_entries SET octets = (SELECT LENGTH(b.delivery) FROM bodies b WHERE b.body_id = queue_entries.body_id);
UPDATE queues SET
    entries = (SELECT COUNT(*) FROM queue_entries e WHERE e.queue_id = queues.queue_id),
    octets  = (SELECT COALESCE(SUM(e.octets), 0) FROM queue_entries e WHERE e.queue_id = queues.queue_id);

-- The groups whose last entry in a queue is a `messages_lost`, un-acknowledged: what is lost of them is told already.
CREATE TABLE queue_markers (
    queue_id BLOB    NOT NULL,
    hub      TEXT    NOT NULL,
    group_id TEXT    NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (queue_id, hub, group_id)
) WITHOUT ROWID;

-- Queues that are gone, for as long as a repeat of the request that deleted them is answered.
CREATE TABLE deleted_queues (
    queue_id      BLOB    NOT NULL PRIMARY KEY,
    owner_key     BLOB    NOT NULL,
    client        TEXT    NOT NULL,
    expires_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX deleted_queues_by_expiry ON deleted_queues (expires_at_ms);

-- Invites (X3, X5): who claimed the KeyPackage, and the groups that they are bound to.
CREATE TABLE invite_claims (
    queue_id      BLOB    NOT NULL,
    invite_id     BLOB    NOT NULL,
    claimed_by    TEXT    NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (queue_id, invite_id)
) WITHOUT ROWID;
CREATE INDEX invite_claims_by_expiry ON invite_claims (expires_at_ms);

CREATE TABLE invite_bindings (
    queue_id      BLOB    NOT NULL,
    invite_id     BLOB    NOT NULL,
    hub           TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (queue_id, invite_id, hub, group_id)
) WITHOUT ROWID;
CREATE INDEX invite_bindings_by_expiry ON invite_bindings (expires_at_ms);

-- KeyPackages: the invite in each, and the references of all that were ever published, until they expire (R7).
ALTER TABLE key_packages ADD COLUMN queue_id  BLOB;
ALTER TABLE key_packages ADD COLUMN invite_id BLOB;
ALTER TABLE key_packages ADD COLUMN invite_expires_at_ms INTEGER;
ALTER TABLE key_packages ADD COLUMN generation INTEGER;
ALTER TABLE key_packages ADD COLUMN client_key_hash BLOB;
CREATE INDEX key_packages_by_expiry ON key_packages (not_after_ms);

CREATE TABLE key_package_references (
    reference    BLOB    NOT NULL PRIMARY KEY,
    not_after_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX key_package_references_by_expiry ON key_package_references (not_after_ms);
INSERT INTO key_package_references (reference, not_after_ms) SELECT reference, not_after_ms FROM key_packages;

-- Accounts: the keys that clients have shown, those that are revoked (X1), blocks (X5), and the hubs that deliver (X6).
CREATE TABLE client_keys (
    client     TEXT    NOT NULL,
    key_hash   BLOB    NOT NULL,
    user_uri   TEXT    NOT NULL,
    seen_at_ms INTEGER NOT NULL,
    PRIMARY KEY (client, key_hash)
) WITHOUT ROWID;
CREATE INDEX client_keys_by_user ON client_keys (user_uri);

CREATE TABLE revoked_keys (
    key_hash      BLOB    NOT NULL PRIMARY KEY,
    version       INTEGER NOT NULL,
    revoked_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX revoked_keys_by_version ON revoked_keys (version);

CREATE TABLE blocks (
    user_uri TEXT NOT NULL,
    name     TEXT NOT NULL,
    PRIMARY KEY (user_uri, name)
) WITHOUT ROWID;

CREATE TABLE user_hubs (
    user_uri TEXT    NOT NULL,
    hub      TEXT    NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (user_uri, hub)
) WITHOUT ROWID;
CREATE INDEX user_hubs_by_hub ON user_hubs (hub);

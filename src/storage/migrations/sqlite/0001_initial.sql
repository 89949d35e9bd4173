-- Column types live here only; the statements in src/storage/*.rs are shared between backends.
-- Times are milliseconds since 1970. Records are opaque: their format is their owner's (S17).

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- Delivery Service: small record, members, snapshot and log of staged Commits.
CREATE TABLE groups (
    group_id   TEXT    NOT NULL PRIMARY KEY,
    revision   INTEGER NOT NULL,
    head       BLOB    NOT NULL,
    group_info BLOB    NOT NULL
);

CREATE TABLE group_members (
    group_id   TEXT    NOT NULL,
    leaf_index INTEGER NOT NULL,
    record     BLOB    NOT NULL,
    PRIMARY KEY (group_id, leaf_index)
) WITHOUT ROWID;

CREATE TABLE group_snapshots (
    group_id TEXT    NOT NULL,
    epoch    INTEGER NOT NULL,
    record   BLOB    NOT NULL,
    PRIMARY KEY (group_id, epoch)
);

CREATE TABLE group_log (
    group_id TEXT    NOT NULL,
    epoch    INTEGER NOT NULL,
    record   BLOB    NOT NULL,
    PRIMARY KEY (group_id, epoch)
);

-- Idempotency: the answer of every accepted change, by sender key and request id.
CREATE TABLE answers (
    sender        BLOB    NOT NULL,
    request_id    BLOB    NOT NULL,
    digest        BLOB    NOT NULL,
    response      BLOB    NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (sender, request_id)
) WITHOUT ROWID;
CREATE INDEX answers_by_expiry ON answers (expires_at_ms);

-- A delivered message, once; `uses` counts the queue entries and lane frames that refer to it.
CREATE TABLE bodies (
    body_id       BLOB    NOT NULL PRIMARY KEY,
    hub           TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    epoch         INTEGER NOT NULL,
    delivery      BLOB    NOT NULL,
    arrived_at_ms INTEGER NOT NULL,
    uses          INTEGER NOT NULL
);

-- Queueing Service.
CREATE TABLE queues (
    queue_id           BLOB    NOT NULL PRIMARY KEY,
    owner_key          BLOB    NOT NULL,
    client             TEXT    NOT NULL,
    generation         INTEGER NOT NULL,
    retired_generation INTEGER NOT NULL,
    next_sequence      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX queues_by_client ON queues (client);

CREATE TABLE queue_entries (
    queue_id BLOB    NOT NULL,
    sequence INTEGER NOT NULL,
    body_id  BLOB    NOT NULL,
    PRIMARY KEY (queue_id, sequence)
) WITHOUT ROWID;

CREATE TABLE key_packages (
    reference     BLOB    NOT NULL PRIMARY KEY,
    user_uri      TEXT    NOT NULL,
    client        TEXT    NOT NULL,
    key_package   BLOB    NOT NULL,
    last_resort   INTEGER NOT NULL,
    not_after_ms  INTEGER NOT NULL
);
CREATE INDEX key_packages_by_user ON key_packages (user_uri, client, last_resort, not_after_ms);

-- Lanes out: one per remote domain and group.
CREATE TABLE lanes (
    domain        TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    incarnation   BLOB    NOT NULL,
    next_sequence INTEGER NOT NULL,
    PRIMARY KEY (domain, group_id)
) WITHOUT ROWID;

CREATE TABLE lane_frames (
    domain        TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    lane_sequence INTEGER NOT NULL,
    body_id       BLOB    NOT NULL,
    recipients    BLOB    NOT NULL,
    PRIMARY KEY (domain, group_id, lane_sequence)
) WITHOUT ROWID;

-- Lanes in: how far each has come, and the answers to its last frames.
CREATE TABLE lanes_in (
    hub           TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    incarnation   BLOB    NOT NULL,
    next_sequence INTEGER NOT NULL,
    PRIMARY KEY (hub, group_id)
) WITHOUT ROWID;

CREATE TABLE lane_answers (
    hub           TEXT    NOT NULL,
    group_id      TEXT    NOT NULL,
    lane_sequence INTEGER NOT NULL,
    digest        BLOB    NOT NULL,
    responses     BLOB    NOT NULL,
    PRIMARY KEY (hub, group_id, lane_sequence)
) WITHOUT ROWID;

-- Authentication Service.
CREATE TABLE users (
    user_uri      TEXT    NOT NULL PRIMARY KEY,
    certificate   BLOB    NOT NULL,
    enrolled_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE invitations (
    token_hash    BLOB    NOT NULL PRIMARY KEY,
    user_uri      TEXT    NOT NULL,
    expires_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- What other domains publish, pinned at first sight.
CREATE TABLE domains (
    domain       TEXT    NOT NULL PRIMARY KEY,
    info         BLOB    NOT NULL,
    pinned_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- The domain's own AS roots (X2), oldest first: the last one issues. The key of a root that is retired is gone.
CREATE TABLE as_roots (
    number      INTEGER NOT NULL PRIMARY KEY,
    certificate BLOB    NOT NULL,
    key         BLOB    NOT NULL,
    since_ms    INTEGER NOT NULL
);
INSERT INTO as_roots (number, certificate, key, since_ms)
    SELECT 1, c.value, k.value, 0 FROM settings c, settings k
    WHERE c.name = 'as_root_certificate' AND k.name = 'as_root_key';
DELETE FROM settings WHERE name IN ('as_root_certificate', 'as_root_key');

-- What the domain has said about them, signed.
CREATE TABLE root_statements (
    version   INTEGER NOT NULL PRIMARY KEY,
    statement BLOB    NOT NULL
);

-- What is pinned of other domains has a further field, an empty list so far; and when it was last changed by an operator.
UPDATE domains SET info = CAST(info || x'00' AS BLOB);
ALTER TABLE domains ADD COLUMN approved_at_ms INTEGER NOT NULL DEFAULT 0;

-- What domains publish that no pinned root vouches for: an operator decides.
CREATE TABLE pending_roots (
    domain     TEXT    NOT NULL PRIMARY KEY,
    info       BLOB    NOT NULL,
    seen_at_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Domains that have retired a root, for as long as leaves under it are looked for in the groups here.
CREATE TABLE root_sweeps (
    domain   TEXT    NOT NULL PRIMARY KEY,
    since_ms INTEGER NOT NULL,
    begun    INTEGER NOT NULL
) WITHOUT ROWID;

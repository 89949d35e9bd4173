-- Lanes out, counted, so that nobody walks their frames to show or to bound them. Frames are numbered on the wire from the place
-- `begins_after` on: an incarnation that ends moves it, and no frame has to be written anew. `dead_frames`: more than 0
-- while rows up to that place are still to be swept away. `undelivered_since_ms`: since when something has waited and nothing was delivered;
-- NULL when nothing waits. `refused_since_ms`: since when the other side has refused even a reset.
ALTER TABLE lanes ADD COLUMN begins_after INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lanes ADD COLUMN frames       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lanes ADD COLUMN octets       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lanes ADD COLUMN dead_frames  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lanes ADD COLUMN undelivered_since_ms INTEGER;
ALTER TABLE lanes ADD COLUMN refused_since_ms     INTEGER;

ALTER TABLE lane_frames ADD COLUMN octets         INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lane_frames ADD COLUMN accepted_at_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lane_frames ADD COLUMN is_reset       INTEGER NOT NULL DEFAULT 0;
UPDATE lane_frames SET
    octets = LENGTH(recipients) + (SELECT LENGTH(b.delivery) FROM bodies b WHERE b.body_id = lane_frames.body_id),
    accepted_at_ms = (SELECT b.arrived_at_ms FROM bodies b WHERE b.body_id = lane_frames.body_id);
UPDATE lanes SET
    frames = (SELECT COUNT(*) FROM lane_frames f WHERE f.domain = lanes.domain AND f.group_id = lanes.group_id),
    octets = (SELECT COALESCE(SUM(f.octets), 0) FROM lane_frames f
              WHERE f.domain = lanes.domain AND f.group_id = lanes.group_id),
    undelivered_since_ms = (SELECT f.accepted_at_ms FROM lane_frames f
              WHERE f.domain = lanes.domain AND f.group_id = lanes.group_id ORDER BY f.lane_sequence LIMIT 1);
CREATE INDEX lanes_waiting ON lanes (domain, group_id) WHERE undelivered_since_ms IS NOT NULL;
CREATE INDEX lanes_unswept ON lanes (domain, group_id) WHERE dead_frames > 0;

-- Incarnations that ended before their frames were delivered: what is lost, and why. Not the messages themselves.
CREATE TABLE dead_letters (
    domain        TEXT    NOT NULL,
    died_at_ms    INTEGER NOT NULL,
    group_id      TEXT    NOT NULL,
    incarnation   BLOB    NOT NULL,
    lane_sequence INTEGER NOT NULL,
    frames        INTEGER NOT NULL,
    octets        INTEGER NOT NULL,
    epoch         INTEGER NOT NULL,
    recipients    INTEGER NOT NULL,
    digest        BLOB,
    reason        TEXT    NOT NULL,
    detail        TEXT    NOT NULL,
    PRIMARY KEY (domain, died_at_ms, group_id, incarnation)
) WITHOUT ROWID;
CREATE INDEX dead_letters_by_age ON dead_letters (died_at_ms);

//! Tables `groups`, `group_members`, `group_snapshots`, `group_log`: a group's state, and the one transaction that accepts a
//! request about it together with its answer and its deliveries.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row as _};

use super::answers::{self, Known, StoredAnswer};
use super::deliveries::{self, DeliveryWrite};
use super::{Connection, ROWS_PER_STATEMENT, Storage, Transaction, integer, list, rows, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::{GroupUri, UnixMillis, UserUri};
use crate::ds::state::{GroupState, Head, Member};
use crate::mls::Tree;

/// Accepts one request about one group, or a step that its DS takes itself: checks again what it was decided on, then writes
/// state, answer and deliveries.
pub struct AcceptRequest {
    /// The answer to the request; `None` for what the DS does on its own.
    pub answer: Option<StoredAnswer>,
    /// The group's URI.
    pub group_id: String,
    /// The revision that the request was decided on; `None` makes the group.
    pub revision: Option<u64>,
    /// What becomes of the group; `None` leaves it.
    pub change: Option<GroupChange>,
    /// What is delivered, in order.
    pub deliveries: Vec<DeliveryWrite>,
}

/// A change of a group as records.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    /// The head.
    pub head: Vec<u8>,
    /// The new GroupInfo, if any.
    pub group_info: Option<Vec<u8>>,
    /// Members set, by leaf index.
    pub set: Vec<(u32, MemberRow)>,
    /// Leaves removed.
    pub removed: Vec<u32>,
    /// The staged Commit that begins an epoch.
    pub log: Option<(u64, Vec<u8>)>,
    /// A snapshot of an epoch.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// When the group was deleted, if it is.
    pub closed_at: Option<UnixMillis>,
}

/// A member: its record, and what leaves are looked up by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// The record, opaque here.
    pub record: Vec<u8>,
    /// Whose leaf it is.
    pub user: UserUri,
    /// Hash of the leaf's signature key, as `credential_status` names it.
    pub client_key: [u8; 32],
    /// Hash of its user's key.
    pub user_key: [u8; 32],
    /// When it was last heard of, coarsely.
    pub heard_at: UnixMillis,
    /// When its credential or leaf node ends.
    pub expires_at: UnixMillis,
}

impl MemberRow {
    /// What is stored of a member.
    pub fn of(member: &Member) -> Result<Self, Fault> {
        Ok(Self {
            record: member.to_record()?,
            user: member.client.user().clone(),
            client_key: member.client_key_hash(),
            user_key: member.user_key_hash,
            heard_at: UnixMillis(member.heard_at_ms),
            expires_at: UnixMillis(member.not_after_ms),
        })
    }
}

/// What came of an [`AcceptRequest`].
#[derive(Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Everything is on disk. For each delivery, whether each of its local recipients' queues took it.
    Written(Vec<Vec<bool>>),
    /// The request id is known already; nothing was written.
    Known(Known),
    /// The group changed since the decision (or, for a new group, the id is taken); nothing was written.
    Conflict,
}

impl Transaction for AcceptRequest {
    const NAME: &'static str = "accept_request";
    type Answer = Acceptance;

    async fn apply(&self, connection: &mut Connection) -> Result<Acceptance, Fault> {
        if let Some(answer) = &self.answer
            && let Some(known) = answers::look_up(connection, &answer.key).await?
        {
            return Ok(Acceptance::Known(known));
        }
        if !self.lock_group(connection).await? {
            return Ok(Acceptance::Conflict);
        }
        if let Some(change) = &self.change {
            self.write_members(connection, change).await?;
            self.write_tree(connection, change).await?;
        }
        let mut taken = Vec::with_capacity(self.deliveries.len());
        for delivery in &self.deliveries {
            taken.push(deliveries::write(connection, delivery).await?);
        }
        if let Some(answer) = &self.answer {
            answers::keep(connection, &answer.key, &answer.response, answer.expires_at).await?;
        }
        Ok(Acceptance::Written(taken))
    }
}

impl AcceptRequest {
    /// Makes sure, under the transaction's lock, that the group is what the decision saw. Returns whether it is.
    async fn lock_group(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let affected = match (self.revision, &self.change) {
            (None, change) => {
                let change = change.as_ref().context("a new group has no state")?;
                let group_info = change.group_info.as_ref().context("a new group has no GroupInfo")?;
                sqlx::query(
                    "INSERT INTO groups (group_id, revision, head, group_info) VALUES ($1, 0, $2, $3) \
                     ON CONFLICT (group_id) DO NOTHING",
                )
                .bind(self.group_id.as_str())
                .bind(change.head.as_slice())
                .bind(group_info.as_slice())
                .execute(connection)
                .await
            }
            // A touch without effect: it takes the row's lock on backends that have one.
            (Some(revision), None) => {
                sqlx::query("UPDATE groups SET revision = revision WHERE group_id = $1 AND revision = $2")
                    .bind(self.group_id.as_str())
                    .bind(integer(revision))
                    .execute(connection)
                    .await
            }
            (Some(revision), Some(change)) => {
                sqlx::query(
                    "UPDATE groups SET revision = revision + 1, head = $3, group_info = COALESCE($4, group_info), \
                     closed_at_ms = COALESCE($5, closed_at_ms) WHERE group_id = $1 AND revision = $2",
                )
                .bind(self.group_id.as_str())
                .bind(integer(revision))
                .bind(change.head.as_slice())
                .bind(change.group_info.as_deref())
                .bind(change.closed_at.map(|at| integer(at.0)))
                .execute(connection)
                .await
            }
        };
        Ok(affected.context("could not lock a group")?.rows_affected() == 1)
    }

    async fn write_members(&self, connection: &mut Connection, change: &GroupChange) -> Result<(), Fault> {
        for chunk in change.removed.chunks(ROWS_PER_STATEMENT) {
            let statement = format!("DELETE FROM group_members WHERE group_id = $1 AND leaf_index IN ({})", list(2, chunk.len()));
            let mut query = sqlx::query(AssertSqlSafe(statement)).bind(self.group_id.as_str());
            for leaf_index in chunk {
                query = query.bind(i64::from(*leaf_index));
            }
            query.execute(&mut *connection).await.context("could not remove members")?;
        }
        for chunk in change.set.chunks(ROWS_PER_STATEMENT) {
            let statement = format!(
                "INSERT INTO group_members \
                 (group_id, leaf_index, record, user_uri, client_key, user_key, heard_at_ms, expires_at_ms) VALUES {} \
                 ON CONFLICT (group_id, leaf_index) DO UPDATE SET record = excluded.record, user_uri = excluded.user_uri, \
                 client_key = excluded.client_key, user_key = excluded.user_key, heard_at_ms = excluded.heard_at_ms, \
                 expires_at_ms = excluded.expires_at_ms",
                rows(chunk.len(), 8)
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for (leaf_index, member) in chunk {
                query = query
                    .bind(self.group_id.as_str())
                    .bind(i64::from(*leaf_index))
                    .bind(member.record.as_slice())
                    .bind(member.user.to_string())
                    .bind(member.client_key.as_slice())
                    .bind(member.user_key.as_slice())
                    .bind(integer(member.heard_at.0))
                    .bind(integer(member.expires_at.0));
            }
            query.execute(&mut *connection).await.context("could not write members")?;
        }
        Ok(())
    }

    async fn write_tree(&self, connection: &mut Connection, change: &GroupChange) -> Result<(), Fault> {
        let records = [("group_log", &change.log), ("group_snapshots", &change.snapshot)];
        for (table, record) in records {
            let Some((epoch, record)) = record else { continue };
            sqlx::query(AssertSqlSafe(format!("INSERT INTO {table} (group_id, epoch, record) VALUES ($1, $2, $3)")))
                .bind(self.group_id.as_str())
                .bind(integer(*epoch))
                .bind(record.as_slice())
                .execute(&mut *connection)
                .await
                .with_context(|| format!("could not write to {table}"))?;
        }
        Ok(())
    }
}

/// Makes groups that were deleted before a time disappear with everything of theirs. Answers which ones.
pub struct PurgeGroups {
    /// Groups closed before this go.
    pub closed_before: UnixMillis,
    /// At most so many at once.
    pub limit: u64,
}

impl Transaction for PurgeGroups {
    const NAME: &'static str = "purge_groups";
    type Answer = Vec<String>;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<String>, Fault> {
        let failed = "could not purge deleted groups";
        let closed = sqlx::query("SELECT group_id FROM groups WHERE closed_at_ms < $1 ORDER BY closed_at_ms LIMIT $2")
            .bind(integer(self.closed_before.0))
            .bind(integer(self.limit))
            .fetch_all(&mut *connection)
            .await
            .context(failed)?;
        let closed: Vec<String> = closed.iter().map(|row| row.try_get("group_id").context(failed)).collect::<Result<_, _>>()?;
        for group_id in &closed {
            let frames = sqlx::query("DELETE FROM lane_frames WHERE group_id = $1 RETURNING body_id")
                .bind(group_id.as_str())
                .fetch_all(&mut *connection)
                .await
                .context(failed)?;
            let body_ids: Vec<Vec<u8>> =
                frames.iter().map(|row| row.try_get("body_id")).collect::<Result<_, _>>().context(failed)?;
            deliveries::release_bodies(connection, &body_ids).await?;
            for table in ["lanes", "group_log", "group_snapshots", "group_members", "groups"] {
                sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE group_id = $1")))
                    .bind(group_id.as_str())
                    .execute(&mut *connection)
                    .await
                    .context(failed)?;
            }
        }
        Ok(closed)
    }
}

/// Writes a snapshot and drops what no state needs any more. What stays, however long a joiner waits: the snapshot that its past
/// state is rebuilt from, the one after it, from which the next will be, and the newest; and the log since the first of them.
/// Whole trees in between would let the database grow with the square of the group.
pub struct WriteSnapshot {
    /// The group's URI.
    pub group_id: String,
    /// The snapshot's epoch.
    pub epoch: u64,
    /// The snapshot.
    pub record: Vec<u8>,
    /// The oldest epoch that a pending joiner may still ask for.
    pub oldest_needed: u64,
}

impl Transaction for WriteSnapshot {
    const NAME: &'static str = "write_snapshot";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        let insert = "INSERT INTO group_snapshots (group_id, epoch, record) VALUES ($1, $2, $3) \
                      ON CONFLICT (group_id, epoch) DO NOTHING";
        // What is kept begins with the newest snapshot that is not younger than the oldest epoch needed.
        let drop_snapshots = "DELETE FROM group_snapshots WHERE group_id = $1 AND epoch < \
                              (SELECT MAX(epoch) FROM group_snapshots WHERE group_id = $1 AND epoch <= $2)";
        let drop_between = "DELETE FROM group_snapshots WHERE group_id = $1 AND epoch < $2 AND epoch > \
                            (SELECT epoch FROM group_snapshots WHERE group_id = $1 ORDER BY epoch LIMIT 1 OFFSET 1)";
        let drop_log = "DELETE FROM group_log WHERE group_id = $1 AND epoch <= \
                        (SELECT MIN(epoch) FROM group_snapshots WHERE group_id = $1)";
        let failed = "could not write a group's snapshot";
        sqlx::query(insert)
            .bind(self.group_id.as_str())
            .bind(integer(self.epoch))
            .bind(self.record.as_slice())
            .execute(&mut *connection)
            .await
            .context(failed)?;
        sqlx::query(drop_snapshots)
            .bind(self.group_id.as_str())
            .bind(integer(self.oldest_needed))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        sqlx::query(drop_between)
            .bind(self.group_id.as_str())
            .bind(integer(self.epoch))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        sqlx::query(drop_log).bind(self.group_id.as_str()).execute(connection).await.context(failed)?;
        Ok(())
    }
}

/// By what leaves are looked up.
#[derive(Clone, Copy, Debug)]
pub enum LeavesBy<'a> {
    /// Leaves whose own key has this hash.
    ClientKey(&'a [u8; 32]),
    /// Leaves of the user whose key has this hash.
    UserKey(&'a [u8; 32]),
    /// Leaves that were last heard of before this.
    SilentSince(UnixMillis),
    /// Leaves that end before this.
    ExpiringBefore(UnixMillis),
    /// Leaves of the users of this domain.
    OfDomain(&'a crate::base::Domain),
}

impl Storage {
    /// The groups with such leaves, at most `limit` of them, in order of name, behind `after`.
    pub async fn groups_with_leaves(&self, by: LeavesBy<'_>, after: &str, limit: u32) -> Result<Vec<String>, Fault> {
        let failed = "could not look leaves up";
        let condition = match by {
            LeavesBy::ClientKey(_) => "client_key = $1",
            LeavesBy::UserKey(_) => "user_key = $1",
            LeavesBy::SilentSince(_) => "heard_at_ms < $1",
            LeavesBy::ExpiringBefore(_) => "expires_at_ms < $1",
            // Asked so seldom that it need not be fast.
            LeavesBy::OfDomain(_) => "user_uri LIKE $1",
        };
        // The plus signs keep the planner to the index of the condition: few leaves meet it.
        let statement = format!(
            "SELECT DISTINCT group_id FROM group_members WHERE {condition} AND +group_id > $2 ORDER BY +group_id LIMIT $3"
        );
        let query = sqlx::query(AssertSqlSafe(statement));
        let query = match by {
            LeavesBy::ClientKey(hash) | LeavesBy::UserKey(hash) => query.bind(hash.as_slice()),
            LeavesBy::SilentSince(time) | LeavesBy::ExpiringBefore(time) => query.bind(integer(time.0)),
            LeavesBy::OfDomain(domain) => query.bind(format!("mimi://{domain}/u/%")),
        };
        let rows = query.bind(after).bind(i64::from(limit)).fetch_all(self.readers()).await.context(failed)?;
        rows.iter().map(|row| row.try_get("group_id").context(failed)).collect()
    }

    /// The groups in which `user` has a leaf, in order of name, at most `limit` (X6). Deleted ones do not count.
    pub async fn groups_of_user(&self, user: &UserUri, limit: usize) -> Result<Vec<String>, Fault> {
        let failed = "could not read a user's groups";
        let rows = sqlx::query(
            "SELECT DISTINCT m.group_id FROM group_members m JOIN groups g ON g.group_id = m.group_id \
             WHERE m.user_uri = $1 AND g.closed_at_ms IS NULL ORDER BY m.group_id LIMIT $2",
        )
        .bind(user.to_string())
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter().map(|row| row.try_get("group_id").context(failed)).collect()
    }

    /// How many groups `user` has a leaf in.
    pub async fn count_groups_of_user(&self, user: &UserUri) -> Result<u64, Fault> {
        let failed = "could not count a user's groups";
        let row = sqlx::query("SELECT COUNT(DISTINCT group_id) AS n FROM group_members WHERE user_uri = $1")
            .bind(user.to_string())
            .fetch_one(self.readers())
            .await
            .context(failed)?;
        Ok(unsigned(row.try_get("n").context(failed)?))
    }

    /// A group's current GroupInfo (MLSMessage); `None` when there is no such group.
    pub async fn group_info(&self, uri: &GroupUri) -> Result<Option<Vec<u8>>, Fault> {
        let failed = || format!("could not read the GroupInfo of {uri}");
        let row = sqlx::query("SELECT group_info FROM groups WHERE group_id = $1")
            .bind(uri.to_string())
            .fetch_optional(self.readers())
            .await
            .with_context(failed)?;
        row.map(|row| row.try_get("group_info").with_context(failed)).transpose()
    }

    /// A group's small record; `None` when there is no such group. Does not touch the tree.
    pub async fn group_state(&self, uri: &GroupUri) -> Result<Option<GroupState>, Fault> {
        let failed = || format!("could not read the state of {uri}");
        // One snapshot of the database for both statements: members and revision belong together.
        let mut transaction = self.readers().begin().await.with_context(failed)?;
        let row = sqlx::query("SELECT revision, head FROM groups WHERE group_id = $1")
            .bind(uri.to_string())
            .fetch_optional(&mut *transaction)
            .await
            .with_context(failed)?;
        let Some(row) = row else { return Ok(None) };
        let members = sqlx::query("SELECT leaf_index, record FROM group_members WHERE group_id = $1")
            .bind(uri.to_string())
            .fetch_all(&mut *transaction)
            .await
            .with_context(failed)?;
        let mut by_leaf = BTreeMap::new();
        for member in members {
            let leaf_index: i64 = member.try_get("leaf_index").with_context(failed)?;
            let record: Vec<u8> = member.try_get("record").with_context(failed)?;
            by_leaf.insert(u32::try_from(leaf_index).with_context(failed)?, Member::from_record(&record)?);
        }
        let head: Vec<u8> = row.try_get("head").with_context(failed)?;
        Ok(Some(GroupState {
            uri: uri.clone(),
            revision: unsigned(row.try_get("revision").with_context(failed)?),
            head: Head::from_record(&head)?,
            members: by_leaf,
        }))
    }

    /// A group's tree as it was in `epoch`, from the newest snapshot not younger than that and the log after it. With the number
    /// of log records that were replayed.
    pub async fn group_tree(&self, uri: &GroupUri, epoch: u64) -> Result<(Tree, u64), Fault> {
        let failed = || format!("could not read the tree of {uri} in epoch {epoch}");
        let mut transaction = self.readers().begin().await.with_context(failed)?;
        let snapshot = sqlx::query(
            "SELECT epoch, record FROM group_snapshots WHERE group_id = $1 AND epoch <= $2 ORDER BY epoch DESC LIMIT 1",
        )
        .bind(uri.to_string())
        .bind(integer(epoch))
        .fetch_optional(&mut *transaction)
        .await
        .with_context(failed)?
        .with_context(failed)?;
        let from: i64 = snapshot.try_get("epoch").with_context(failed)?;
        let log = sqlx::query("SELECT record FROM group_log WHERE group_id = $1 AND epoch > $2 AND epoch <= $3 ORDER BY epoch")
            .bind(uri.to_string())
            .bind(from)
            .bind(integer(epoch))
            .fetch_all(&mut *transaction)
            .await
            .with_context(failed)?;
        let records: Vec<Vec<u8>> = log.iter().map(|row| row.try_get("record")).collect::<Result<_, _>>().with_context(failed)?;
        let snapshot: Vec<u8> = snapshot.try_get("record").with_context(failed)?;
        let tree = Tree::restore(&uri.to_bytes(), &snapshot, records.iter().map(Vec::as_slice))?;
        if tree.epoch() != epoch {
            return Err(Fault::new(format!("{} (the log ends in epoch {})", failed(), tree.epoch())));
        }
        Ok((tree, records.len() as u64))
    }
}

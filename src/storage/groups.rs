//! Tables `groups`, `group_members`, `group_snapshots`, `group_log`: a group's state, and the one transaction that accepts a
//! request about it together with its answer and its deliveries.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row as _};

use super::answers::{self, Known, RequestKey};
use super::deliveries::{self, DeliveryWrite};
use super::{Connection, ROWS_PER_STATEMENT, Storage, Transaction, integer, list, rows, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::{GroupUri, UnixMillis};
use crate::ds::state::{GroupState, Head, Member};
use crate::mls::Tree;

/// Accepts one request about one group: checks again what it was decided on, then writes state, answer and deliveries.
pub struct AcceptRequest {
    /// Names the request; the answer is stored under it.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
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
    pub set: Vec<(u32, Vec<u8>)>,
    /// Leaves removed.
    pub removed: Vec<u32>,
    /// The staged Commit that begins an epoch.
    pub log: Option<(u64, Vec<u8>)>,
    /// A snapshot of an epoch.
    pub snapshot: Option<(u64, Vec<u8>)>,
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
        if let Some(known) = answers::look_up(connection, &self.key).await? {
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
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
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
                    "UPDATE groups SET revision = revision + 1, head = $3, group_info = COALESCE($4, group_info) \
                     WHERE group_id = $1 AND revision = $2",
                )
                .bind(self.group_id.as_str())
                .bind(integer(revision))
                .bind(change.head.as_slice())
                .bind(change.group_info.as_deref())
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
                "INSERT INTO group_members (group_id, leaf_index, record) VALUES {} \
                 ON CONFLICT (group_id, leaf_index) DO UPDATE SET record = excluded.record",
                rows(chunk.len(), 3)
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for (leaf_index, record) in chunk {
                query = query.bind(self.group_id.as_str()).bind(i64::from(*leaf_index)).bind(record.as_slice());
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

/// Writes a snapshot and drops what no state needs any more: older snapshots and the log before the oldest one kept.
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
        sqlx::query(drop_log).bind(self.group_id.as_str()).execute(connection).await.context(failed)?;
        Ok(())
    }
}

impl Storage {
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

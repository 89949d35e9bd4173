//! Tables `blocks` and `user_hubs`: whom a user does not want to hear of (X5), and who delivers to it (X6).

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::{Connection, Storage, Transaction, unsigned};
use crate::accounts::requests::has_room_for_block;
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UnixMillis, UserUri};

/// Blocks a user or domain, or takes that back, and stores the answer.
pub struct ChangeBlock {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// Who blocks.
    pub user: UserUri,
    /// Whom: a user's URI, or a domain.
    pub name: String,
    /// Whether it is blocked from now on.
    pub blocked: bool,
}

/// What came of a [`ChangeBlock`].
#[derive(Debug, PartialEq, Eq)]
pub enum BlockChanged {
    /// It is on disk.
    Done,
    /// The request id is known already.
    Known(Known),
    /// The user blocks as many as it may.
    OverLimit,
}

impl Transaction for ChangeBlock {
    const NAME: &'static str = "change_block";
    type Answer = BlockChanged;

    async fn apply(&self, connection: &mut Connection) -> Result<BlockChanged, Fault> {
        let failed = "could not change a block";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(BlockChanged::Known(known));
        }
        let user = self.user.to_string();
        if self.blocked {
            let row = sqlx::query("SELECT COUNT(*) AS n, COALESCE(SUM(name = $2), 0) AS there FROM blocks WHERE user_uri = $1")
                .bind(user.as_str())
                .bind(self.name.as_str())
                .fetch_one(&mut *connection)
                .await
                .context(failed)?;
            let there: i64 = row.try_get("there").context(failed)?;
            if there == 0 && !has_room_for_block(unsigned(row.try_get("n").context(failed)?)) {
                return Ok(BlockChanged::OverLimit);
            }
        }
        let statement = if self.blocked {
            "INSERT INTO blocks (user_uri, name) VALUES ($1, $2) ON CONFLICT (user_uri, name) DO NOTHING"
        } else {
            "DELETE FROM blocks WHERE user_uri = $1 AND name = $2"
        };
        sqlx::query(statement).bind(user.as_str()).bind(self.name.as_str()).execute(&mut *connection).await.context(failed)?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(BlockChanged::Done)
    }
}

impl Storage {
    /// The hubs that have delivered to a queue of this user, by name (X6). Our own domain is among them when it has.
    pub async fn hubs_of(&self, user: &UserUri) -> Result<Vec<Domain>, Fault> {
        let failed = "could not read who delivers to a user";
        let rows = sqlx::query("SELECT hub FROM user_hubs WHERE user_uri = $1 ORDER BY hub")
            .bind(user.to_string())
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        domains(&rows).context(failed)
    }

    /// The hubs that have delivered to any queue here. Our own domain is among them when it has.
    pub async fn hubs(&self) -> Result<Vec<Domain>, Fault> {
        let failed = "could not read who delivers here";
        let rows =
            sqlx::query("SELECT DISTINCT hub FROM user_hubs ORDER BY hub").fetch_all(self.readers()).await.context(failed)?;
        domains(&rows).context(failed)
    }
}

fn domains(rows: &[sqlx::sqlite::SqliteRow]) -> Result<Vec<Domain>, Fault> {
    let failed = "a hub's name is not readable";
    rows.iter().map(|row| row.try_get::<String, _>("hub").context(failed)?.parse().context(failed)).collect()
}

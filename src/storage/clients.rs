//! Tables `client_keys` and `revoked_keys`: the keys that clients have shown, and those that are no longer good (X1). What goes
//! with a client or user that is revoked goes in the same transaction.

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::queues::{drop_queue, queues_of_client, queues_of_user};
use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::accounts::requests::check_known_client;
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::{ClientUri, UnixMillis, UserUri};

/// Within a transaction: remembers a key that a client has shown, so that it can be revoked.
pub(super) async fn note_client(
    connection: &mut Connection,
    client: &ClientUri,
    key_hash: &[u8; 32],
    now: UnixMillis,
) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO client_keys (client, key_hash, user_uri, seen_at_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (client, key_hash) DO NOTHING",
    )
    .bind(client.to_string())
    .bind(key_hash.as_slice())
    .bind(client.user().to_string())
    .bind(integer(now.0))
    .execute(connection)
    .await
    .context("could not note a client's key")?;
    Ok(())
}

/// Revokes the keys of a client; its queues and KeyPackages are gone. Stores the answer.
pub struct RevokeClient {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The client.
    pub client: ClientUri,
    /// The time now.
    pub now: UnixMillis,
}

/// What came of a [`RevokeClient`] or [`DeleteUser`].
#[derive(Debug, PartialEq, Eq)]
pub enum Revoked {
    /// On disk. These queues are gone.
    Done(Vec<QueueId>),
    /// The request id is known already.
    Known(Known),
    /// The client has shown no key; nothing was written.
    UnknownClient,
}

impl Transaction for RevokeClient {
    const NAME: &'static str = "revoke_client";
    type Answer = Revoked;

    async fn apply(&self, connection: &mut Connection) -> Result<Revoked, Fault> {
        let failed = "could not revoke a client";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Revoked::Known(known));
        }
        let client = self.client.to_string();
        let keys = sqlx::query("SELECT key_hash FROM client_keys WHERE client = $1")
            .bind(client.as_str())
            .fetch_all(&mut *connection)
            .await
            .context(failed)?;
        if check_known_client(keys.len()).is_err() {
            return Ok(Revoked::UnknownClient);
        }
        for row in &keys {
            let key_hash: Vec<u8> = row.try_get("key_hash").context(failed)?;
            revoke(connection, &key_hash, self.now).await?;
        }
        let queues = queues_of_client(connection, &self.client).await?;
        for queue_id in &queues {
            drop_queue(connection, *queue_id).await?;
        }
        for statement in ["DELETE FROM key_packages WHERE client = $1", "DELETE FROM client_keys WHERE client = $1"] {
            sqlx::query(statement).bind(client.as_str()).execute(&mut *connection).await.context(failed)?;
        }
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Revoked::Done(queues))
    }
}

/// Deletes a user: its key and those of all its clients are revoked, and everything that is kept for it is gone but the names of
/// the hubs that deliver to it, which have to be told. Stores the answer.
pub struct DeleteUser {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The user.
    pub user: UserUri,
    /// The hash of its key.
    pub user_key_hash: [u8; 32],
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for DeleteUser {
    const NAME: &'static str = "delete_user";
    type Answer = Revoked;

    async fn apply(&self, connection: &mut Connection) -> Result<Revoked, Fault> {
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Revoked::Known(known));
        }
        let queues = revoke_user(connection, &self.user, &self.user_key_hash, self.now).await?;
        for statement in [
            "DELETE FROM blocks WHERE user_uri = $1",
            // Invitations from before would bring the user back; the operator makes a new one if that is wanted.
            "DELETE FROM invitations WHERE user_uri = $1",
            "DELETE FROM users WHERE user_uri = $1",
        ] {
            sqlx::query(statement)
                .bind(self.user.to_string())
                .execute(&mut *connection)
                .await
                .context("could not delete a user")?;
        }
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Revoked::Done(queues))
    }
}

/// Within a transaction: the user's key is no longer good, and neither are its clients. Returns the queues that are gone.
pub(super) async fn revoke_user(
    connection: &mut Connection,
    user: &UserUri,
    user_key_hash: &[u8; 32],
    now: UnixMillis,
) -> Result<Vec<QueueId>, Fault> {
    let failed = "could not revoke a user's keys";
    revoke(connection, user_key_hash, now).await?;
    let keys = sqlx::query("SELECT key_hash FROM client_keys WHERE user_uri = $1")
        .bind(user.to_string())
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
    for row in &keys {
        let key_hash: Vec<u8> = row.try_get("key_hash").context(failed)?;
        revoke(connection, &key_hash, now).await?;
    }
    let queues = queues_of_user(connection, user).await?;
    for queue_id in &queues {
        drop_queue(connection, *queue_id).await?;
    }
    for statement in ["DELETE FROM key_packages WHERE user_uri = $1", "DELETE FROM client_keys WHERE user_uri = $1"] {
        sqlx::query(statement).bind(user.to_string()).execute(&mut *connection).await.context(failed)?;
    }
    Ok(queues)
}

async fn revoke(connection: &mut Connection, key_hash: &[u8], now: UnixMillis) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO revoked_keys (key_hash, version, revoked_at_ms) \
         VALUES ($1, (SELECT COALESCE(MAX(version), 0) + 1 FROM revoked_keys), $2) ON CONFLICT (key_hash) DO NOTHING",
    )
    .bind(key_hash)
    .bind(integer(now.0))
    .execute(connection)
    .await
    .context("could not revoke a key")?;
    Ok(())
}

impl Storage {
    /// The number of this state of the list of revoked keys; 0 while it is empty.
    pub async fn revoked_version(&self) -> Result<u64, Fault> {
        let failed = "could not read the version of the revoked keys";
        let statement = "SELECT COALESCE(MAX(version), 0) AS version FROM revoked_keys";
        let row = sqlx::query(statement).fetch_one(self.readers()).await.context(failed)?;
        Ok(unsigned(row.try_get("version").context(failed)?))
    }

    /// Every revoked key of this domain, by its hash, and the number of this state of the list (X1): it grows with each key.
    pub async fn revoked_keys(&self) -> Result<(u64, Vec<[u8; 32]>), Fault> {
        let failed = "could not read the revoked keys";
        let rows = sqlx::query("SELECT key_hash, version FROM revoked_keys ORDER BY version")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        let mut keys = Vec::with_capacity(rows.len());
        let mut newest = 0;
        for row in rows {
            let key_hash: Vec<u8> = row.try_get("key_hash").context(failed)?;
            keys.push(key_hash.try_into().map_err(|_| Fault::new("a revoked key's hash is not readable"))?);
            newest = unsigned(row.try_get("version").context(failed)?);
        }
        Ok((newest, keys))
    }
}

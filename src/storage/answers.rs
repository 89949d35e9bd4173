//! Table `answers`: what was answered to accepted changes, so that a repeat changes nothing (*Idempotency* in
//! `docs/protocol.md`).

use sqlx::Row as _;

use super::{Connection, Storage, Transaction, integer};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::RequestId;
use crate::base::{UnixMillis, crypto::sha256};

/// Which request of whom, and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// SHA-256 of the sender's key.
    pub sender: [u8; 32],
    /// The request's id.
    pub request_id: RequestId,
    /// Digest of all but issued_at.
    pub digest: [u8; 32],
}

impl RequestKey {
    /// `sender_key`: the public key that the request's signature was verified with.
    pub fn new(sender_key: &[u8], request_id: RequestId, digest: [u8; 32]) -> Self {
        Self { sender: sha256(sender_key), request_id, digest }
    }
}

/// The answer to a request, as it is kept for repeats.
#[derive(Clone, Debug)]
pub struct StoredAnswer {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when it is kept.
    pub expires_at: UnixMillis,
}

/// What is already known of a request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was answered with this encoded Response.
    Answered(Vec<u8>),
    /// It was used for other content.
    OtherContent,
}

const SELECT: &str = "SELECT digest, response FROM answers WHERE sender = $1 AND request_id = $2";

fn known(row: &sqlx::sqlite::SqliteRow, key: &RequestKey) -> Result<Known, Fault> {
    let digest: Vec<u8> = row.try_get("digest").context("a stored answer is not readable")?;
    if digest == key.digest {
        Ok(Known::Answered(row.try_get("response").context("a stored answer is not readable")?))
    } else {
        Ok(Known::OtherContent)
    }
}

/// Within a transaction: what is known of the request.
pub(super) async fn look_up(connection: &mut Connection, key: &RequestKey) -> Result<Option<Known>, Fault> {
    let row = sqlx::query(SELECT)
        .bind(key.sender.as_slice())
        .bind(key.request_id.0.as_slice())
        .fetch_optional(connection)
        .await
        .context("could not look up a stored answer")?;
    row.map(|row| known(&row, key)).transpose()
}

/// Within a transaction: keeps the answer until `expires_at`.
pub(super) async fn keep(
    connection: &mut Connection,
    key: &RequestKey,
    response: &[u8],
    expires_at: UnixMillis,
) -> Result<(), Fault> {
    sqlx::query("INSERT INTO answers (sender, request_id, digest, response, expires_at_ms) VALUES ($1, $2, $3, $4, $5)")
        .bind(key.sender.as_slice())
        .bind(key.request_id.0.as_slice())
        .bind(key.digest.as_slice())
        .bind(response)
        .bind(integer(expires_at.0))
        .execute(connection)
        .await
        .context("could not store an answer")?;
    Ok(())
}

/// Forgets answers that expired before `now`, a bounded number at a time, so that nobody waits long behind it.
pub struct ForgetAnswers {
    /// The time now.
    pub now: UnixMillis,
    /// The most answers to forget; when fewer were forgotten, no expired ones are left.
    pub limit: u64,
}

impl Transaction for ForgetAnswers {
    const NAME: &'static str = "forget_answers";
    type Answer = u64;

    async fn apply(&self, connection: &mut Connection) -> Result<u64, Fault> {
        let statement = "DELETE FROM answers WHERE (sender, request_id) IN \
                         (SELECT sender, request_id FROM answers WHERE expires_at_ms < $1 LIMIT $2)";
        let done = sqlx::query(statement)
            .bind(integer(self.now.0))
            .bind(integer(self.limit))
            .execute(connection)
            .await
            .context("could not forget old answers")?;
        Ok(done.rows_affected())
    }
}

impl Storage {
    /// What is known of a request, before anything is decided.
    pub async fn known_request(&self, key: &RequestKey) -> Result<Option<Known>, Fault> {
        let row = sqlx::query(SELECT)
            .bind(key.sender.as_slice())
            .bind(key.request_id.0.as_slice())
            .fetch_optional(self.readers())
            .await
            .context("could not look up a stored answer")?;
        row.map(|row| known(&row, key)).transpose()
    }
}

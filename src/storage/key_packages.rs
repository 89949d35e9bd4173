//! Table `key_packages` (R7).

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::{ClientUri, UnixMillis, UserUri};
use crate::qs::key_packages::PublishedKeyPackage;

/// Stores KeyPackages of one client, and the answer.
pub struct PublishKeyPackages {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// Whose KeyPackages.
    pub client: ClientUri,
    /// The KeyPackages; a last-resort one replaces the one before.
    pub key_packages: Vec<PublishedKeyPackage>,
    /// The most ordinary KeyPackages that the client may have published at once.
    pub limit: u64,
    /// The time now; expired ones go.
    pub now: UnixMillis,
}

/// What came of a [`PublishKeyPackages`].
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// They are on disk.
    Stored,
    /// The request id is known already.
    Known(Known),
    /// They would be more than the limit.
    OverLimit,
    /// A KeyPackage was published before.
    Repeated,
}

impl Transaction for PublishKeyPackages {
    const NAME: &'static str = "publish_key_packages";
    type Answer = Published;

    async fn apply(&self, connection: &mut Connection) -> Result<Published, Fault> {
        let failed = "could not store KeyPackages";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Published::Known(known));
        }
        let client = self.client.to_string();
        // The checks come before the first write: a refused publication changes nothing.
        let count = sqlx::query("SELECT COUNT(*) AS n FROM key_packages WHERE client = $1 AND user_uri = $2 AND last_resort = 0 AND not_after_ms >= $3")
            .bind(client.as_str())
            .bind(self.client.user().to_string())
                .bind(integer(self.now.0))
                .fetch_one(&mut *connection)
            .await
            .context(failed)?;
        let there = unsigned(count.try_get("n").context(failed)?);
        let ordinary = self.key_packages.iter().filter(|key_package| !key_package.last_resort).count() as u64;
        if there + ordinary > self.limit {
            return Ok(Published::OverLimit);
        }
        let mut references = std::collections::BTreeSet::new();
        for key_package in &self.key_packages {
            let taken = sqlx::query("SELECT 1 AS n FROM key_packages WHERE reference = $1")
                .bind(key_package.reference.as_slice())
                .fetch_optional(&mut *connection)
                .await
                .context(failed)?;
            if taken.is_some() || !references.insert(&key_package.reference) {
                return Ok(Published::Repeated);
            }
        }
        sqlx::query("DELETE FROM key_packages WHERE client = $1 AND not_after_ms < $2")
            .bind(client.as_str())
            .bind(integer(self.now.0))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        for key_package in &self.key_packages {
            if key_package.last_resort {
                sqlx::query("DELETE FROM key_packages WHERE client = $1 AND last_resort = 1")
                    .bind(client.as_str())
                    .execute(&mut *connection)
                    .await
                    .context(failed)?;
            }
            sqlx::query(
                "INSERT INTO key_packages (reference, user_uri, client, key_package, last_resort, not_after_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(key_package.reference.as_slice())
            .bind(self.client.user().to_string())
            .bind(client.as_str())
            .bind(key_package.message.as_slice())
            .bind(i64::from(key_package.last_resort))
            .bind(integer(key_package.not_after.0))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        }
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Published::Stored)
    }
}

/// Takes one KeyPackage of each client of a user: the one that expires first, else the last-resort one, which stays.
pub struct ClaimKeyPackages {
    /// Names the request: a repeat gets the KeyPackages that the first try took.
    pub key: RequestKey,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// Whose KeyPackages.
    pub user: UserUri,
    /// Those that expire before this are not handed out.
    pub usable_until: UnixMillis,
    /// Encodes the answer, which is stored in the same transaction.
    pub respond: fn(Vec<ClaimedKeyPackage>) -> Vec<u8>,
}

/// A client's URI and one KeyPackage of it.
pub type ClaimedKeyPackage = (String, Vec<u8>);

/// What came of a [`ClaimKeyPackages`].
#[derive(Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The encoded Response with the KeyPackages.
    Answered(Vec<u8>),
    /// The request id is known already.
    Known(Known),
    /// The user has none to give.
    None,
}

impl Transaction for ClaimKeyPackages {
    const NAME: &'static str = "claim_key_packages";
    type Answer = Claimed;

    async fn apply(&self, connection: &mut Connection) -> Result<Claimed, Fault> {
        let failed = "could not claim KeyPackages";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Claimed::Known(known));
        }
        let found = sqlx::query(
            "SELECT reference, client, last_resort FROM key_packages \
             WHERE user_uri = $1 AND not_after_ms > $2 ORDER BY client, last_resort, not_after_ms",
        )
        .bind(self.user.to_string())
        .bind(integer(self.usable_until.0))
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
        let mut claimed: Vec<ClaimedKeyPackage> = Vec::new();
        for row in found {
            let client: String = row.try_get("client").context(failed)?;
            // Sorted by client, ordinary before last resort: the first of each client is the one to take.
            if claimed.last().is_some_and(|(last, _)| *last == client) {
                continue;
            }
            let reference: Vec<u8> = row.try_get("reference").context(failed)?;
            let chosen = sqlx::query("SELECT key_package FROM key_packages WHERE reference = $1")
                .bind(reference.as_slice())
                .fetch_one(&mut *connection)
                .await
                .context(failed)?;
            let last_resort: i64 = row.try_get("last_resort").context(failed)?;
            if last_resort == 0 {
                sqlx::query("DELETE FROM key_packages WHERE reference = $1")
                    .bind(reference.as_slice())
                    .execute(&mut *connection)
                    .await
                    .context(failed)?;
            }
            claimed.push((client, chosen.try_get("key_package").context(failed)?));
        }
        if claimed.is_empty() {
            return Ok(Claimed::None);
        }
        let response = (self.respond)(claimed);
        answers::keep(connection, &self.key, &response, self.answer_expires_at).await?;
        Ok(Claimed::Answered(response))
    }
}

impl Storage {
    /// How many ordinary and last-resort KeyPackages of a client can be handed out.
    pub async fn key_package_count(&self, client: &ClientUri, usable_until: UnixMillis) -> Result<(u64, u64), Fault> {
        let failed = "could not count KeyPackages";
        let rows = sqlx::query(
            "SELECT last_resort, COUNT(*) AS n FROM key_packages \
             WHERE client = $1 AND user_uri = $2 AND not_after_ms > $3 GROUP BY last_resort",
        )
        .bind(client.to_string())
        .bind(client.user().to_string())
        .bind(integer(usable_until.0))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let mut counts = (0, 0);
        for row in rows {
            let last_resort: i64 = row.try_get("last_resort").context(failed)?;
            let count = unsigned(row.try_get("n").context(failed)?);
            if last_resort == 0 {
                counts.0 = count;
            } else {
                counts.1 = count;
            }
        }
        Ok(counts)
    }
}

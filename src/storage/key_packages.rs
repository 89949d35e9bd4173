//! Table `key_packages` (R7).

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::clients::note_client;
use super::invites::{is_blocked, note_claim};
use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::{ClientUri, UnixMillis, UserUri};
use crate::qs::claims::{Candidate, choose};
use crate::qs::key_packages::{PublishedKeyPackage, has_room_for, is_new};
use crate::wire::Rejection;

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
    /// The hash of the client's key (`identity::revoked::key_hash`): what is revoked with the client.
    pub client_key_hash: [u8; 32],
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
        let count = sqlx::query(
            "SELECT COUNT(*) AS n FROM key_packages WHERE client = $1 AND user_uri = $2 AND last_resort = 0 \
             AND not_after_ms >= $3 AND (client_key_hash IS NULL OR client_key_hash = $4)",
        )
        .bind(client.as_str())
        .bind(self.client.user().to_string())
        .bind(integer(self.now.0))
        .bind(self.client_key_hash.as_slice())
        .fetch_one(&mut *connection)
        .await
        .context(failed)?;
        let there = unsigned(count.try_get("n").context(failed)?);
        let ordinary = self.key_packages.iter().filter(|key_package| !key_package.last_resort).count() as u64;
        if !has_room_for(ordinary, there, self.limit) {
            return Ok(Published::OverLimit);
        }
        let mut references = std::collections::BTreeSet::new();
        for key_package in &self.key_packages {
            let known = sqlx::query("SELECT 1 AS n FROM key_package_references WHERE reference = $1")
                .bind(key_package.reference.as_slice())
                .fetch_optional(&mut *connection)
                .await
                .context(failed)?;
            if !is_new(known.is_some() || !references.insert(&key_package.reference)) {
                return Ok(Published::Repeated);
            }
        }
        // A client that lost its keys has new ones (X6): nobody can open what an old one's KeyPackage brings.
        sqlx::query("DELETE FROM key_packages WHERE client = $1 AND client_key_hash <> $2")
            .bind(client.as_str())
            .bind(self.client_key_hash.as_slice())
            .execute(&mut *connection)
            .await
            .context(failed)?;
        for key_package in &self.key_packages {
            self.store(connection, key_package).await?;
        }
        note_client(connection, &self.client, &self.client_key_hash, self.now).await?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Published::Stored)
    }
}

impl PublishKeyPackages {
    async fn store(&self, connection: &mut Connection, key_package: &PublishedKeyPackage) -> Result<(), Fault> {
        let failed = "could not store a KeyPackage";
        let client = self.client.to_string();
        if key_package.last_resort {
            sqlx::query("DELETE FROM key_packages WHERE client = $1 AND last_resort = 1")
                .bind(client.as_str())
                .execute(&mut *connection)
                .await
                .context(failed)?;
        }
        sqlx::query(
            "INSERT INTO key_packages (reference, user_uri, client, key_package, last_resort, not_after_ms, queue_id, invite_id, \
             invite_expires_at_ms, generation, client_key_hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(key_package.reference.as_slice())
        .bind(self.client.user().to_string())
        .bind(client.as_str())
        .bind(key_package.message.as_slice())
        .bind(i64::from(key_package.last_resort))
        .bind(integer(key_package.not_after.0))
        .bind(key_package.invite.queue_id.0.as_slice())
        .bind(key_package.invite.invite_id.0.as_slice())
        .bind(integer(key_package.invite.expires_at.0))
        .bind(i64::from(key_package.invite.generation))
        .bind(self.client_key_hash.as_slice())
        .execute(&mut *connection)
        .await
        .context(failed)?;
        // Remembered for as long as it would be good, so that what was handed out once is not published again.
        sqlx::query(
            "INSERT INTO key_package_references (reference, not_after_ms) VALUES ($1, $2) ON CONFLICT (reference) DO NOTHING",
        )
        .bind(key_package.reference.as_slice())
        .bind(integer(key_package.not_after.0))
        .execute(connection)
        .await
        .context(failed)?;
        Ok(())
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
    /// Who asks.
    pub asker: UserUri,
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
    /// The user has none to give, or not to this asker.
    Refused(Rejection),
}

impl Transaction for ClaimKeyPackages {
    const NAME: &'static str = "claim_key_packages";
    type Answer = Claimed;

    async fn apply(&self, connection: &mut Connection) -> Result<Claimed, Fault> {
        let failed = "could not claim KeyPackages";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Claimed::Known(known));
        }
        let askers = [self.asker.to_string(), self.asker.domain().to_string()];
        let blocked = is_blocked(connection, &self.user, &askers).await?;
        let found = sqlx::query(
            "SELECT reference, client, last_resort FROM key_packages \
             WHERE user_uri = $1 AND not_after_ms > $2 ORDER BY client, last_resort, not_after_ms",
        )
        .bind(self.user.to_string())
        .bind(integer(self.usable_until.0))
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
        let mut candidates = Vec::with_capacity(found.len());
        for row in found {
            candidates.push(Candidate {
                reference: row.try_get("reference").context(failed)?,
                client: row.try_get("client").context(failed)?,
                last_resort: row.try_get::<i64, _>("last_resort").context(failed)? != 0,
            });
        }
        let chosen = match choose(candidates, blocked) {
            Ok(chosen) => chosen,
            Err(rejection) => return Ok(Claimed::Refused(rejection)),
        };
        let mut claimed: Vec<ClaimedKeyPackage> = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let key_package = self.take(connection, &candidate).await?;
            claimed.push((candidate.client, key_package));
        }
        let response = (self.respond)(claimed);
        answers::keep(connection, &self.key, &response, self.answer_expires_at).await?;
        Ok(Claimed::Answered(response))
    }
}

impl ClaimKeyPackages {
    /// Takes a KeyPackage out, unless it is of last resort.
    async fn take(&self, connection: &mut Connection, candidate: &Candidate) -> Result<Vec<u8>, Fault> {
        let failed = "could not take a claimed KeyPackage";
        let row =
            sqlx::query("SELECT key_package, queue_id, invite_id, invite_expires_at_ms FROM key_packages WHERE reference = $1")
                .bind(candidate.reference.as_slice())
                .fetch_one(&mut *connection)
                .await
                .context(failed)?;
        if !candidate.last_resort {
            sqlx::query("DELETE FROM key_packages WHERE reference = $1")
                .bind(candidate.reference.as_slice())
                .execute(&mut *connection)
                .await
                .context(failed)?;
            // One of last resort goes to many, and nobody can tell whose Welcome it brings. Rows from before invites were
            // looked at have none.
            let queue_id: Option<Vec<u8>> = row.try_get("queue_id").context(failed)?;
            let invite_id: Option<Vec<u8>> = row.try_get("invite_id").context(failed)?;
            let expires_at: Option<i64> = row.try_get("invite_expires_at_ms").context(failed)?;
            if let (Some(queue_id), Some(invite_id), Some(expires_at)) = (queue_id, invite_id, expires_at) {
                note_claim(connection, &queue_id, &invite_id, &self.asker, UnixMillis(unsigned(expires_at))).await?;
            }
        }
        row.try_get("key_package").context(failed)
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

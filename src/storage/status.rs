//! Tables `credential_status` and `status_pushes`: which keys domains have revoked, and which hubs know our own list (X1).

use sqlx::Row as _;

use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::Domain;
use crate::base::fault::{Context as _, Fault};

/// A domain's newest list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredStatus {
    /// Whose.
    pub domain: Domain,
    /// Its version.
    pub version: u64,
    /// Encoded `wire::peer::CredentialStatus`.
    pub status: Vec<u8>,
    /// Whether its revocations have reached the groups of this hub.
    pub applied: bool,
}

/// Keeps a domain's list, unless a newer one is known. Answers whether the version is new.
pub struct KeepStatus {
    /// Whose.
    pub domain: Domain,
    /// Its version.
    pub version: u64,
    /// Encoded `wire::peer::CredentialStatus`.
    pub status: Vec<u8>,
}

impl Transaction for KeepStatus {
    const NAME: &'static str = "keep_status";
    type Answer = bool;

    async fn apply(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let failed = || format!("could not keep the credential status of {}", self.domain);
        let known = sqlx::query("SELECT version FROM credential_status WHERE domain = $1")
            .bind(self.domain.as_str())
            .fetch_optional(&mut *connection)
            .await
            .with_context(failed)?;
        let known = known.map(|row| row.try_get::<i64, _>("version").map(unsigned)).transpose().with_context(failed)?;
        if known.is_some_and(|known| known > self.version) {
            return Ok(false);
        }
        let is_new = known != Some(self.version);
        // The same version again is only fresher: what was applied of it stays so.
        sqlx::query(
            "INSERT INTO credential_status (domain, version, status, applied) VALUES ($1, $2, $3, 0) \
             ON CONFLICT (domain) DO UPDATE SET status = excluded.status, \
             applied = CASE WHEN credential_status.version = excluded.version THEN credential_status.applied ELSE 0 END, \
             version = excluded.version",
        )
        .bind(self.domain.as_str())
        .bind(integer(self.version))
        .bind(self.status.as_slice())
        .execute(connection)
        .await
        .with_context(failed)?;
        Ok(is_new)
    }
}

/// A version of a domain's list has reached the groups of this hub.
pub struct StatusApplied {
    /// Whose.
    pub domain: Domain,
    /// Its version.
    pub version: u64,
}

impl Transaction for StatusApplied {
    const NAME: &'static str = "status_applied";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("UPDATE credential_status SET applied = 1 WHERE domain = $1 AND version = $2")
            .bind(self.domain.as_str())
            .bind(integer(self.version))
            .execute(connection)
            .await
            .with_context(|| format!("could not note that the credential status of {} is applied", self.domain))?;
        Ok(())
    }
}

/// A hub has taken a version of our own list.
pub struct StatusPushed {
    /// The hub.
    pub hub: Domain,
    /// The version.
    pub version: u64,
}

impl Transaction for StatusPushed {
    const NAME: &'static str = "status_pushed";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query(
            "INSERT INTO status_pushes (hub, version) VALUES ($1, $2) \
             ON CONFLICT (hub) DO UPDATE SET version = MAX(status_pushes.version, excluded.version)",
        )
        .bind(self.hub.as_str())
        .bind(integer(self.version))
        .execute(connection)
        .await
        .with_context(|| format!("could not note what {} knows of our credential status", self.hub))?;
        Ok(())
    }
}

impl Storage {
    /// The newest list of each domain.
    pub async fn statuses(&self) -> Result<Vec<StoredStatus>, Fault> {
        let failed = "could not read credential statuses";
        let rows = sqlx::query("SELECT domain, version, status, applied FROM credential_status")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter()
            .map(|row| {
                Ok(StoredStatus {
                    domain: row.try_get::<String, _>("domain").context(failed)?.parse().context(failed)?,
                    version: unsigned(row.try_get("version").context(failed)?),
                    status: row.try_get("status").context(failed)?,
                    applied: row.try_get::<i64, _>("applied").context(failed)? != 0,
                })
            })
            .collect()
    }

    /// The version of our own list that each hub has taken; hubs that have taken none are not there.
    pub async fn status_pushes(&self) -> Result<Vec<(Domain, u64)>, Fault> {
        let failed = "could not read which hubs know our credential status";
        let rows = sqlx::query("SELECT hub, version FROM status_pushes").fetch_all(self.readers()).await.context(failed)?;
        rows.iter()
            .map(|row| {
                let hub = row.try_get::<String, _>("hub").context(failed)?.parse().context(failed)?;
                Ok((hub, unsigned(row.try_get("version").context(failed)?)))
            })
            .collect()
    }
}

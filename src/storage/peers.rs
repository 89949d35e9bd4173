//! Table `peer_overrides`: what an operator has said of peers while the node ran.

use sqlx::Row as _;

use super::{Connection, Storage, Transaction, integer};
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UnixMillis};

/// Keeps what is said of a peer from now on, or that nothing is.
pub struct KeepPeerOverride {
    /// Which peer.
    pub domain: Domain,
    /// The override as text, which is not looked into here; `None`: there is none any more.
    pub said: Option<String>,
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for KeepPeerOverride {
    const NAME: &'static str = "keep_peer_override";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        let failed = || format!("could not keep what was said of the peer {}", self.domain);
        match &self.said {
            Some(said) => sqlx::query(
                "INSERT INTO peer_overrides (domain, said, changed_at_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (domain) DO UPDATE SET said = excluded.said, changed_at_ms = excluded.changed_at_ms",
            )
            .bind(self.domain.as_str())
            .bind(said.as_str())
            .bind(integer(self.now.0)),
            None => sqlx::query("DELETE FROM peer_overrides WHERE domain = $1").bind(self.domain.as_str()),
        }
        .execute(connection)
        .await
        .with_context(failed)?;
        Ok(())
    }
}

impl Storage {
    /// What was said of peers, in the order of their names.
    pub async fn peer_overrides(&self) -> Result<Vec<(Domain, String)>, Fault> {
        let failed = "could not read what was said of peers";
        let rows = sqlx::query("SELECT domain, said FROM peer_overrides ORDER BY domain")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter()
            .map(|row| {
                let domain: String = row.try_get("domain").context(failed)?;
                Ok((domain.parse().context(failed)?, row.try_get("said").context(failed)?))
            })
            .collect()
    }
}

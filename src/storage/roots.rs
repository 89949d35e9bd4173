//! Tables `as_roots` and `root_statements`, the domain's own; `pending_roots` and `root_sweeps`, about other domains and its own;
//! and how what `domains` has pinned changes (X2).

use sqlx::Row as _;

use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::secret::Secret;
use crate::base::{Domain, UnixMillis};

/// One of the domain's own roots.
#[derive(Debug)]
pub struct StoredRoot {
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// Its key (PKCS#8 DER).
    pub key: Secret,
    /// Since when it is there.
    pub since: UnixMillis,
}

/// Changes the domain's own roots, with the statement that says so. Answers `false`, and changes nothing, when another statement
/// came first.
pub struct ChangeRoots {
    /// The domain.
    pub domain: Domain,
    /// The statement's number.
    pub version: u64,
    /// Encoded `wire::info::RootStatement`.
    pub statement: Vec<u8>,
    /// A root that is new: certificate and key.
    pub added: Option<(Vec<u8>, Secret)>,
    /// The certificate of a root that is no longer good.
    pub retired: Option<Vec<u8>>,
    /// How many statements are kept.
    pub kept: u64,
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for ChangeRoots {
    const NAME: &'static str = "change_roots";
    type Answer = bool;

    async fn apply(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let failed = "could not change the AS roots";
        let newest = sqlx::query("SELECT COALESCE(MAX(version), 0) AS version FROM root_statements")
            .fetch_one(&mut *connection)
            .await
            .context(failed)?;
        if unsigned(newest.try_get("version").context(failed)?) + 1 != self.version {
            return Ok(false);
        }
        sqlx::query("INSERT INTO root_statements (version, statement) VALUES ($1, $2)")
            .bind(integer(self.version))
            .bind(self.statement.as_slice())
            .execute(&mut *connection)
            .await
            .context(failed)?;
        sqlx::query("DELETE FROM root_statements WHERE version <= $1")
            .bind(integer(self.version.saturating_sub(self.kept)))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        if let Some((certificate, key)) = &self.added {
            add_root(connection, certificate, key, self.now).await?;
        }
        if let Some(certificate) = &self.retired {
            sqlx::query("DELETE FROM as_roots WHERE certificate = $1")
                .bind(certificate.as_slice())
                .execute(&mut *connection)
                .await
                .context(failed)?;
            begin_sweep(connection, &self.domain, self.now).await?;
        }
        // Hubs hear of it with the list of revoked keys, which is signed with the root that issues now.
        sqlx::query("DELETE FROM status_pushes").execute(connection).await.context(failed)?;
        Ok(true)
    }
}

/// Adds a root behind the others.
pub(super) async fn add_root(
    connection: &mut Connection,
    certificate: &[u8],
    key: &Secret,
    now: UnixMillis,
) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO as_roots (number, certificate, key, since_ms) \
         SELECT COALESCE(MAX(number), 0) + 1, $1, $2, $3 FROM as_roots",
    )
    .bind(certificate)
    .bind(key.expose())
    .bind(integer(now.0))
    .execute(connection)
    .await
    .context("could not write an AS root")?;
    Ok(())
}

async fn begin_sweep(connection: &mut Connection, domain: &Domain, now: UnixMillis) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO root_sweeps (domain, since_ms, begun) VALUES ($1, $2, 0) \
         ON CONFLICT (domain) DO UPDATE SET since_ms = excluded.since_ms, begun = 0",
    )
    .bind(domain.as_str())
    .bind(integer(now.0))
    .execute(connection)
    .await
    .context("could not note that a domain has retired a root")?;
    Ok(())
}

/// Pins other roots of a domain than before, because some that were pinned vouch for them or an operator does. Nothing of the
/// domain is pending any more.
pub struct MovePins {
    /// Whose.
    pub domain: Domain,
    /// Encoded `wire::info::DomainInfo`: what is pinned from now on.
    pub info: Vec<u8>,
    /// Whether a root that was pinned is none any more.
    pub retires: bool,
    /// Whether an operator said so, beside a node that has to notice.
    pub approved: bool,
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for MovePins {
    const NAME: &'static str = "move_pins";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        let failed = || format!("could not pin the new AS roots of {}", self.domain);
        sqlx::query(
            "UPDATE domains SET info = $2, pinned_at_ms = $3, \
             approved_at_ms = CASE WHEN $4 = 1 THEN $3 ELSE approved_at_ms END WHERE domain = $1",
        )
        .bind(self.domain.as_str())
        .bind(self.info.as_slice())
        .bind(integer(self.now.0))
        .bind(i64::from(self.approved))
        .execute(&mut *connection)
        .await
        .with_context(failed)?;
        forget_pending(connection, &self.domain).await?;
        if self.retires {
            begin_sweep(connection, &self.domain, self.now).await?;
        }
        Ok(())
    }
}

async fn forget_pending(connection: &mut Connection, domain: &Domain) -> Result<(), Fault> {
    sqlx::query("DELETE FROM pending_roots WHERE domain = $1")
        .bind(domain.as_str())
        .execute(connection)
        .await
        .context("could not forget what was pending of a domain")?;
    Ok(())
}

/// Keeps what a domain publishes and nobody vouches for, in the place of what was pending of it before. Answers whether it is
/// news; `None` as information: what the domain publishes is what is pinned.
pub struct KeepPending {
    /// Whose.
    pub domain: Domain,
    /// Encoded `wire::info::DomainInfo`.
    pub info: Option<Vec<u8>>,
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for KeepPending {
    const NAME: &'static str = "keep_pending_roots";
    type Answer = bool;

    async fn apply(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let failed = || format!("could not keep what {} publishes for an operator", self.domain);
        let Some(info) = &self.info else {
            forget_pending(connection, &self.domain).await?;
            return Ok(false);
        };
        let written = sqlx::query(
            "INSERT INTO pending_roots (domain, info, seen_at_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (domain) DO UPDATE SET info = excluded.info, seen_at_ms = excluded.seen_at_ms \
             WHERE pending_roots.info <> excluded.info",
        )
        .bind(self.domain.as_str())
        .bind(info.as_slice())
        .bind(integer(self.now.0))
        .execute(connection)
        .await
        .with_context(failed)?;
        Ok(written.rows_affected() > 0)
    }
}

/// Leaves under retired roots of a domain were looked for.
pub struct Swept {
    /// Whose.
    pub domain: Domain,
    /// Whether that was the last time.
    pub done: bool,
}

impl Transaction for Swept {
    const NAME: &'static str = "swept";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        let statement = if self.done {
            "DELETE FROM root_sweeps WHERE domain = $1"
        } else {
            "UPDATE root_sweeps SET begun = 1 WHERE domain = $1"
        };
        sqlx::query(statement)
            .bind(self.domain.as_str())
            .execute(connection)
            .await
            .with_context(|| format!("could not note that leaves under retired roots of {} were looked for", self.domain))?;
        Ok(())
    }
}

/// What a domain publishes and no pinned root vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingInfo {
    /// Whose.
    pub domain: Domain,
    /// Encoded `wire::info::DomainInfo`.
    pub info: Vec<u8>,
    /// Since when.
    pub seen_at: UnixMillis,
}

/// A domain of whose leaves some may be under a root that it has retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Whose.
    pub domain: Domain,
    /// When it became so.
    pub since: UnixMillis,
    /// Whether they were looked for once.
    pub begun: bool,
}

impl Storage {
    /// The domain's own roots, oldest first.
    pub async fn own_roots(&self) -> Result<Vec<StoredRoot>, Fault> {
        let failed = "could not read the AS roots";
        let rows = sqlx::query("SELECT certificate, key, since_ms FROM as_roots ORDER BY number")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter()
            .map(|row| {
                Ok(StoredRoot {
                    certificate: row.try_get("certificate").context(failed)?,
                    key: Secret::new(row.try_get("key").context(failed)?),
                    since: UnixMillis(unsigned(row.try_get("since_ms").context(failed)?)),
                })
            })
            .collect()
    }

    /// The domain's own statements, encoded, oldest first.
    pub async fn own_root_statements(&self) -> Result<Vec<Vec<u8>>, Fault> {
        let failed = "could not read the statements about the AS roots";
        let rows = sqlx::query("SELECT statement FROM root_statements ORDER BY version")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter().map(|row| row.try_get("statement").context(failed)).collect()
    }

    /// The number of the domain's own newest statement (0 without one), and when an operator last approved roots of another
    /// domain: what an operator's command changes beside a node.
    pub async fn roots_version(&self) -> Result<(u64, UnixMillis), Fault> {
        let failed = "could not read whether AS roots have changed";
        let row = sqlx::query(
            "SELECT (SELECT COALESCE(MAX(version), 0) FROM root_statements) AS version, \
             (SELECT COALESCE(MAX(approved_at_ms), 0) FROM domains) AS approved",
        )
        .fetch_one(self.readers())
        .await
        .context(failed)?;
        let number = |name| Ok::<_, Fault>(unsigned(row.try_get(name).context(failed)?));
        Ok((number("version")?, UnixMillis(number("approved")?)))
    }

    /// What waits for an operator's word, by domain.
    pub async fn pending_roots(&self) -> Result<Vec<PendingInfo>, Fault> {
        let failed = "could not read what is pending of other domains";
        let rows = sqlx::query("SELECT domain, info, seen_at_ms FROM pending_roots ORDER BY domain")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter()
            .map(|row| {
                Ok(PendingInfo {
                    domain: row.try_get::<String, _>("domain").context(failed)?.parse().context(failed)?,
                    info: row.try_get("info").context(failed)?,
                    seen_at: UnixMillis(unsigned(row.try_get("seen_at_ms").context(failed)?)),
                })
            })
            .collect()
    }

    /// The domains whose leaves are to be looked at because a root was retired.
    pub async fn root_sweeps(&self) -> Result<Vec<Sweep>, Fault> {
        let failed = "could not read which domains have retired a root";
        let rows =
            sqlx::query("SELECT domain, since_ms, begun FROM root_sweeps").fetch_all(self.readers()).await.context(failed)?;
        rows.iter()
            .map(|row| {
                Ok(Sweep {
                    domain: row.try_get::<String, _>("domain").context(failed)?.parse().context(failed)?,
                    since: UnixMillis(unsigned(row.try_get("since_ms").context(failed)?)),
                    begun: row.try_get::<i64, _>("begun").context(failed)? != 0,
                })
            })
            .collect()
    }
}

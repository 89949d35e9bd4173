//! Tables `users`, `invitations` and `domains`.

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::clients::revoke_user;
use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::{Domain, UnixMillis, UserUri};
use crate::identity::tls::spki_hash;

/// Keeps an invitation; a further one for the same user replaces nothing.
pub struct Invite {
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// Who is invited.
    pub user: UserUri,
    /// Until when.
    pub expires_at: UnixMillis,
}

impl Transaction for Invite {
    const NAME: &'static str = "invite";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("INSERT INTO invitations (token_hash, user_uri, expires_at_ms) VALUES ($1, $2, $3)")
            .bind(self.token_hash.as_slice())
            .bind(self.user.to_string())
            .bind(integer(self.expires_at.0))
            .execute(connection)
            .await
            .context("could not store an invitation")?;
        Ok(())
    }
}

/// Turns an invitation into a user, and stores the answer. The token is used up with it. A user who was enrolled with another
/// key has lost it: that key is revoked, with all clients that it vouched for.
pub struct EnrolUser {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// The new user.
    pub user: UserUri,
    /// The user's certificate (DER).
    pub certificate: Vec<u8>,
    /// The time now.
    pub now: UnixMillis,
}

/// What came of an [`EnrolUser`].
#[derive(Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// The user is on disk. `Some`: keys were revoked, and these queues are gone.
    Done(Option<Vec<QueueId>>),
    /// The request id is known already.
    Known(Known),
    /// The token was used in the meantime.
    TokenGone,
}

impl Transaction for EnrolUser {
    const NAME: &'static str = "enrol_user";
    type Answer = Enrolment;

    async fn apply(&self, connection: &mut Connection) -> Result<Enrolment, Fault> {
        let failed = "could not enrol a user";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Enrolment::Known(known));
        }
        let used = sqlx::query("DELETE FROM invitations WHERE token_hash = $1 AND user_uri = $2")
            .bind(self.token_hash.as_slice())
            .bind(self.user.to_string())
            .execute(&mut *connection)
            .await
            .context(failed)?;
        if used.rows_affected() != 1 {
            return Ok(Enrolment::TokenGone);
        }
        let before = sqlx::query("SELECT certificate FROM users WHERE user_uri = $1")
            .bind(self.user.to_string())
            .fetch_optional(&mut *connection)
            .await
            .context(failed)?;
        let mut revoked = None;
        if let Some(row) = before {
            let key_hash = spki_hash(&row.try_get::<Vec<u8>, _>("certificate").context(failed)?)?;
            if key_hash != spki_hash(&self.certificate)? {
                revoked = Some(revoke_user(connection, &self.user, &key_hash, self.now).await?);
            }
        }
        sqlx::query(
            "INSERT INTO users (user_uri, certificate, enrolled_at_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (user_uri) DO UPDATE SET certificate = excluded.certificate, enrolled_at_ms = excluded.enrolled_at_ms",
        )
        .bind(self.user.to_string())
        .bind(self.certificate.as_slice())
        .bind(integer(self.now.0))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Enrolment::Done(revoked))
    }
}

/// Writes a user's new certificate for the key that it is enrolled with, and stores the answer. Answers what is known when the
/// request id is.
pub struct RenewUser {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The user.
    pub user: UserUri,
    /// The user's new certificate (DER).
    pub certificate: Vec<u8>,
}

impl Transaction for RenewUser {
    const NAME: &'static str = "renew_user";
    type Answer = Option<Known>;

    async fn apply(&self, connection: &mut Connection) -> Result<Option<Known>, Fault> {
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Some(known));
        }
        sqlx::query("UPDATE users SET certificate = $2 WHERE user_uri = $1")
            .bind(self.user.to_string())
            .bind(self.certificate.as_slice())
            .execute(&mut *connection)
            .await
            .context("could not renew a user's certificate")?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(None)
    }
}

/// Pins what a domain publishes; what is pinned already stays.
pub struct PinDomain {
    /// Whose information.
    pub domain: Domain,
    /// Encoded `wire::info::DomainInfo`.
    pub info: Vec<u8>,
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for PinDomain {
    const NAME: &'static str = "pin_domain";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("INSERT INTO domains (domain, info, pinned_at_ms) VALUES ($1, $2, $3) ON CONFLICT (domain) DO NOTHING")
            .bind(self.domain.as_str())
            .bind(self.info.as_slice())
            .bind(integer(self.now.0))
            .execute(connection)
            .await
            .context("could not pin a domain")?;
        Ok(())
    }
}

/// An enrolled user.
#[derive(Clone, Debug)]
pub struct User {
    /// Its URI.
    pub uri: UserUri,
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// When it enrolled.
    pub enrolled_at: UnixMillis,
}

impl Storage {
    /// Who an unexpired invitation is for.
    pub async fn invited_user(&self, token_hash: &[u8; 32], now: UnixMillis) -> Result<Option<UserUri>, Fault> {
        let failed = "could not read an invitation";
        let row = sqlx::query("SELECT user_uri FROM invitations WHERE token_hash = $1 AND expires_at_ms > $2")
            .bind(token_hash.as_slice())
            .bind(integer(now.0))
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        let Some(row) = row else { return Ok(None) };
        let user: String = row.try_get("user_uri").context(failed)?;
        Ok(Some(user.parse().context(failed)?))
    }

    /// The hash of the key that a user is enrolled with (S2); `None` when there is no such user.
    pub async fn enrolled_key_hash(&self, user: &UserUri) -> Result<Option<[u8; 32]>, Fault> {
        let failed = "could not read a user";
        let row = sqlx::query("SELECT certificate FROM users WHERE user_uri = $1")
            .bind(user.to_string())
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        row.map(|row| spki_hash(&row.try_get::<Vec<u8>, _>("certificate").context(failed)?)).transpose()
    }

    /// Every enrolled user, by name.
    pub async fn users(&self) -> Result<Vec<User>, Fault> {
        let failed = "could not read the users";
        let rows = sqlx::query("SELECT user_uri, certificate, enrolled_at_ms FROM users ORDER BY user_uri")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.into_iter()
            .map(|row| {
                let uri: String = row.try_get("user_uri").context(failed)?;
                Ok(User {
                    uri: uri.parse().context(failed)?,
                    certificate: row.try_get("certificate").context(failed)?,
                    enrolled_at: UnixMillis(unsigned(row.try_get("enrolled_at_ms").context(failed)?)),
                })
            })
            .collect()
    }

    /// Every pinned domain with its encoded DomainInfo.
    pub async fn pinned_domains(&self) -> Result<Vec<(Domain, Vec<u8>)>, Fault> {
        let failed = "could not read the pinned domains";
        let rows = sqlx::query("SELECT domain, info FROM domains").fetch_all(self.readers()).await.context(failed)?;
        rows.into_iter()
            .map(|row| {
                let domain: String = row.try_get("domain").context(failed)?;
                Ok((domain.parse().context(failed)?, row.try_get("info").context(failed)?))
            })
            .collect()
    }
}

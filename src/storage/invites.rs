//! Tables `invite_claims` and `invite_bindings` (X3, X5): who claimed the KeyPackage that an invite stands in, and which groups
//! the invite is bound to. Decided within the transaction that delivers.

use sqlx::Row as _;

use super::deliveries::{DeliveryWrite, Invite};
use super::{Connection, integer};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::{UnixMillis, UserUri};
use crate::qs::invites::{Bound, InviteUse, decide};

/// Within a transaction: uses an invite for the delivery's group, which binds it when it is the first. Returns whether it may.
pub(super) async fn use_invite(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    queue_id: QueueId,
    user: &UserUri,
    invite: &Invite,
) -> Result<bool, Fault> {
    let failed = "could not read what an invite is bound to";
    let rows = sqlx::query("SELECT hub, group_id FROM invite_bindings WHERE queue_id = $1 AND invite_id = $2")
        .bind(queue_id.0.as_slice())
        .bind(invite.invite_id.0.as_slice())
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
    let mut bound = Vec::with_capacity(rows.len());
    for row in rows {
        let hub: String = row.try_get("hub").context(failed)?;
        bound.push(Bound { hub: hub.parse().context(failed)?, group_id: row.try_get("group_id").context(failed)? });
    }
    let by = Bound { hub: delivery.hub.clone(), group_id: delivery.group_id.clone() };
    let blocked = !bound.contains(&by) && is_unwelcome(connection, delivery, queue_id, user, invite).await?;
    match decide(&by, &bound, invite.last_resort, blocked) {
        InviteUse::Known => Ok(true),
        InviteUse::Refused => Ok(false),
        InviteUse::Bind => {
            sqlx::query(
                "INSERT INTO invite_bindings (queue_id, invite_id, hub, group_id, expires_at_ms) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(queue_id.0.as_slice())
            .bind(invite.invite_id.0.as_slice())
            .bind(by.hub.as_str())
            .bind(by.group_id.as_str())
            .bind(integer(invite.expires_at.0))
            .execute(connection)
            .await
            .context("could not bind an invite")?;
            Ok(true)
        }
    }
}

/// Whether the user blocks the hub, or whoever claimed the KeyPackage, or the claimer's domain.
async fn is_unwelcome(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    queue_id: QueueId,
    user: &UserUri,
    invite: &Invite,
) -> Result<bool, Fault> {
    let failed = "could not read who claimed a KeyPackage";
    let row = sqlx::query("SELECT claimed_by FROM invite_claims WHERE queue_id = $1 AND invite_id = $2")
        .bind(queue_id.0.as_slice())
        .bind(invite.invite_id.0.as_slice())
        .fetch_optional(&mut *connection)
        .await
        .context(failed)?;
    let mut names = vec![delivery.hub.to_string()];
    if let Some(row) = row {
        let claimed_by: String = row.try_get("claimed_by").context(failed)?;
        let claimer: UserUri = claimed_by.parse().context(failed)?;
        names.extend([claimer.domain().to_string(), claimed_by]);
    }
    is_blocked(connection, user, &names).await
}

/// Within a transaction: whether `user` blocks one of `names`, users and domains.
pub(super) async fn is_blocked(connection: &mut Connection, user: &UserUri, names: &[String]) -> Result<bool, Fault> {
    for name in names {
        let found = sqlx::query("SELECT 1 AS n FROM blocks WHERE user_uri = $1 AND name = $2")
            .bind(user.to_string())
            .bind(name.as_str())
            .fetch_optional(&mut *connection)
            .await
            .context("could not read whom a user blocks")?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Within a transaction: remembers who claimed the KeyPackage with this invite.
pub(super) async fn note_claim(
    connection: &mut Connection,
    queue_id: &[u8],
    invite_id: &[u8],
    claimed_by: &UserUri,
    expires_at: UnixMillis,
) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO invite_claims (queue_id, invite_id, claimed_by, expires_at_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (queue_id, invite_id) DO NOTHING",
    )
    .bind(queue_id)
    .bind(invite_id)
    .bind(claimed_by.to_string())
    .bind(integer(expires_at.0))
    .execute(connection)
    .await
    .context("could not note who claimed a KeyPackage")?;
    Ok(())
}

/// Within a transaction: forgets the invites of a queue that goes away.
pub(super) async fn forget_queue(connection: &mut Connection, queue_id: QueueId) -> Result<(), Fault> {
    for statement in ["DELETE FROM invite_claims WHERE queue_id = $1", "DELETE FROM invite_bindings WHERE queue_id = $1"] {
        sqlx::query(statement)
            .bind(queue_id.0.as_slice())
            .execute(&mut *connection)
            .await
            .context("could not forget the invites of a queue")?;
    }
    Ok(())
}

//! What is forgotten with time, whatever table it is in.

use super::{Connection, Transaction, integer};
use crate::base::UnixMillis;
use crate::base::fault::{Context as _, Fault};

/// Forgets what has expired: KeyPackages and their references, invites, deleted queues and invitations, a bounded number of each.
pub struct ForgetExpired {
    /// The time now.
    pub now: UnixMillis,
    /// The most of each.
    pub limit: u64,
}

impl Transaction for ForgetExpired {
    const NAME: &'static str = "forget_expired";
    type Answer = u64;

    /// Answers the most that were forgotten of one kind; when fewer than the limit, none are left.
    async fn apply(&self, connection: &mut Connection) -> Result<u64, Fault> {
        let mut most = 0;
        for statement in [
            "DELETE FROM key_packages WHERE reference IN \
             (SELECT reference FROM key_packages WHERE not_after_ms < $1 LIMIT $2)",
            "DELETE FROM key_package_references WHERE reference IN \
             (SELECT reference FROM key_package_references WHERE not_after_ms < $1 LIMIT $2)",
            "DELETE FROM invite_claims WHERE (queue_id, invite_id) IN \
             (SELECT queue_id, invite_id FROM invite_claims WHERE expires_at_ms < $1 LIMIT $2)",
            "DELETE FROM invite_bindings WHERE (queue_id, invite_id, hub, group_id) IN \
             (SELECT queue_id, invite_id, hub, group_id FROM invite_bindings WHERE expires_at_ms < $1 LIMIT $2)",
            "DELETE FROM deleted_queues WHERE queue_id IN \
             (SELECT queue_id FROM deleted_queues WHERE expires_at_ms < $1 LIMIT $2)",
            "DELETE FROM invitations WHERE token_hash IN \
             (SELECT token_hash FROM invitations WHERE expires_at_ms < $1 LIMIT $2)",
        ] {
            let done = sqlx::query(statement)
                .bind(integer(self.now.0))
                .bind(integer(self.limit))
                .execute(&mut *connection)
                .await
                .context("could not forget what has expired")?;
            most = most.max(done.rows_affected());
        }
        Ok(most)
    }
}

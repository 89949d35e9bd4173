//! Keeping KeyPackages published (R7).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Client;
use super::core::Result;
use super::error::ClientError;
use crate::base::limits;
use crate::wire::Reply;
use crate::wire::keys::{KeysMessage, KeysRequest};
use crate::wire::request::Service;

impl Client {
    /// Publishes KeyPackages when fewer than half are left. Asks only when a Welcome may have used one since the last time, and
    /// now and then.
    pub(super) async fn top_up_key_packages(&self, deadline: Instant) -> Result<()> {
        let used = self.shared.key_packages_used.swap(false, Ordering::Relaxed);
        let now = Instant::now();
        if !used && now < *self.shared.key_packages_due.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(());
        }
        let done = self.top_up(deadline).await;
        if done.is_err() {
            self.shared.key_packages_used.store(true, Ordering::Relaxed);
        } else {
            *self.shared.key_packages_due.lock().unwrap_or_else(PoisonError::into_inner) =
                now + limits::CLIENT_KEY_PACKAGES_COUNT_INTERVAL;
        }
        done
    }

    async fn top_up(&self, deadline: Instant) -> Result<()> {
        let certificates = self.certificates();
        let service = Service::Keys(KeysMessage { certificates, request: KeysRequest::Count });
        let reply = self.ask(self.shared.me.domain(), service, deadline).await?;
        let Reply::KeyPackageCount(count) = reply else {
            return Err(ClientError::Untrusted("the node answered a count with something else".into()));
        };
        let (now, remaining) = (self.shared.now(), self.shared.upkeep.key_package_remaining_min);
        let (wanted, (fresh, fresh_last_resort)) =
            self.transact(move |core| Ok((core.state.account.key_packages, core.key_packages_are_fresh(remaining, now)))).await?;
        // Those that expire soon, or whose queue information ends with its generation, are replaced while they still serve.
        let missing = if fresh { wanted.saturating_sub(count.available) } else { wanted };
        let last_resort = count.last_resort == 0 || !fresh_last_resort;
        if (fresh && count.available >= wanted.div_ceil(2)) && !last_resort {
            return Ok(());
        }
        let held = self.make(move |core| core.make_key_packages(missing, last_resort, now)).await?;
        self.settle_other(held, deadline).await
    }
}

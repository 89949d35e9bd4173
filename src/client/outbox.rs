//! Getting requests answered: the same id and octets again and again, until there is an answer or the deadline passes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep_until};

use super::connection::Node;
use super::outgoing::Answer;
use super::state::Outgoing;
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{Domain, Fault, UnixMillis, limits};
use crate::wire::error::{ErrorCode, Retry, RetryAfter, Sent, UnreachableReason};
use crate::wire::request::Service;
use crate::wire::{Content, Rejection, decode};

/// No answer came before the deadline.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotConfirmed(pub(super) String);

/// A request to be sent until it is answered.
pub(super) struct Question<'a> {
    pub(super) request: RequestId,
    pub(super) destination: Domain,
    pub(super) service: Service,
    /// `None` for `info`, which nobody signs.
    pub(super) key: Option<&'a SigningKey>,
    /// Whether an earlier try may have been acted on: then a refusal of this one is not the last word.
    pub(super) perhaps_done: bool,
}

impl<'a> Question<'a> {
    /// A request kept in the outbox, as it was made.
    pub(super) fn kept(outgoing: &Outgoing, perhaps_done: bool, key: &'a SigningKey) -> Result<Self, Fault> {
        let destination = outgoing.destination.parse().map_err(|error| Fault::because("the outbox names no domain", error))?;
        let service = decode(&outgoing.service.0).map_err(|error| Fault::because("the outbox is damaged", error))?;
        Ok(Self { request: outgoing.request, destination, service, key: Some(key), perhaps_done })
    }

    /// Sends the request until it is answered for good. `offset_ms` is the clock's correction; it is adjusted once when the
    /// node says that the clock is off.
    pub(super) async fn ask(&self, node: &Node, offset_ms: &mut i64, deadline: Instant) -> Result<Answer, NotConfirmed> {
        let (mut wait, mut adjusted, mut perhaps_done) = (limits::CLIENT_WAIT_FIRST, false, self.perhaps_done);
        loop {
            let now = UnixMillis(UnixMillis::now().0.saturating_add_signed(*offset_ms));
            let content = Content::new(&self.destination, self.request, now, self.service.clone());
            let request = match self.key {
                Some(key) => content.sign(key),
                None => content.unsigned(),
            };
            let mut at_least = Duration::ZERO;
            let failed = match node.request(&request, deadline.min(Instant::now() + limits::CLIENT_TRY_TIMEOUT)).await {
                Ok(response) => match response.into_result() {
                    Ok(reply) => return Ok(Ok(reply)),
                    Err(rejection) => {
                        if let Some(detail) = rejection.as_replayed_or_stale().filter(|_| !adjusted) {
                            adjusted = true;
                            *offset_ms = i64::try_from(i128::from(detail.server_time_ms) - i128::from(UnixMillis::now().0))
                                .unwrap_or_default();
                            continue;
                        }
                        // "Not acted on" about this try says nothing about an earlier one.
                        if is_final(&rejection, perhaps_done) {
                            return Ok(Err(rejection));
                        }
                        perhaps_done |= rejection.as_unreachable().is_none_or(|detail| detail.sent == Sent::OutcomeUnknown);
                        at_least = asked_to_wait(&rejection);
                        rejection.to_string()
                    }
                },
                Err(error) => {
                    perhaps_done = true;
                    error.to_string()
                }
            };
            let pause = wait.mul_f64(rand::rng().random_range(0.5..1.0)).max(at_least);
            let next = Instant::now() + pause;
            if next >= deadline {
                return Err(NotConfirmed(failed));
            }
            tracing::debug!(request = %self.request, failed, ?pause, "a request is tried again");
            sleep_until(next).await;
            wait = (wait * 2).min(limits::CLIENT_WAIT_MAX);
        }
    }
}

/// Whether waiting will not help although the code says that it might: the domain is not there, or wants nothing of us.
fn is_hopeless(rejection: &Rejection) -> bool {
    use UnreachableReason::{Denied, DoesNotFederate, ForbiddenAddress, NoSuchDomain, RefusesFederation};
    let for_good = |why| matches!(why, NoSuchDomain | DoesNotFederate | RefusesFederation | ForbiddenAddress | Denied);
    rejection.as_unreachable().is_some_and(|detail| detail.sent == Sent::NotSent && for_good(detail.why))
}

/// Whether `rejection` is the answer for good.
fn is_final(rejection: &Rejection, perhaps_done: bool) -> bool {
    rejection.code.retry() != Retry::Later || (is_hopeless(rejection) && !perhaps_done)
}

fn asked_to_wait(rejection: &Rejection) -> Duration {
    match rejection.code {
        ErrorCode::RateLimited => decode::<RetryAfter>(&rejection.detail)
            .map_or(Duration::ZERO, |detail| Duration::from_millis(detail.retry_after_ms).min(limits::CLIENT_RETRY_AFTER_MAX)),
        _ => Duration::ZERO,
    }
}

/// The requests of the outbox that someone waits for right now, so that nobody else takes them up.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<HashSet<RequestId>>);

impl Busy {
    /// Takes a request for as long as the returned value lives; `None` when someone else has it.
    pub(super) fn take(self: &Arc<Self>, outgoing: Outgoing) -> Option<Held> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(outgoing.request);
        // Built only when it is ours: dropping it gives the request back.
        if taken { Some(Held { outgoing, tried: true, busy: self.clone() }) } else { None }
    }

    /// As [`Busy::take`], for a request that was just made and never sent.
    pub(super) fn take_new(self: &Arc<Self>, outgoing: Outgoing) -> Option<Held> {
        let mut held = self.take(outgoing)?;
        held.tried = false;
        Some(held)
    }

    /// Gives back a request that was kept with [`Held::keep`].
    pub(super) fn release(&self, request: RequestId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
    }
}

/// A request of the outbox that is the holder's to send.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) outgoing: Outgoing,
    /// Whether someone may have sent it before; nobody knows of requests found in the outbox.
    pub(super) tried: bool,
    busy: Arc<Busy>,
}

impl Held {
    /// Keeps the request from everyone until [`Busy::release`], or until the client is opened again.
    pub(super) fn keep(self) -> Outgoing {
        let outgoing = self.outgoing.clone();
        let busy = self.busy.clone();
        drop(self);
        busy.0.lock().unwrap_or_else(PoisonError::into_inner).insert(outgoing.request);
        outgoing
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.busy.release(self.outgoing.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::state::tests::sample;

    #[test]
    fn a_request_is_in_one_pair_of_hands_at_a_time() {
        let (busy, outgoing) = (Arc::new(Busy::default()), sample().outbox.remove(0));
        let held = busy.take(outgoing.clone()).expect("free");
        assert!(busy.take(outgoing.clone()).is_none());
        drop(held);
        let kept = busy.take(outgoing.clone()).expect("free again").keep();
        assert!(busy.take(outgoing.clone()).is_none());
        busy.release(kept.request);
        assert!(busy.take(outgoing).is_some());
    }

    #[test]
    fn only_what_cannot_have_happened_is_given_up() {
        let unreachable = |why, sent| is_hopeless(&Rejection::unreachable(why, sent));
        assert!(unreachable(UnreachableReason::NoSuchDomain, Sent::NotSent));
        assert!(!unreachable(UnreachableReason::NoSuchDomain, Sent::OutcomeUnknown));
        assert!(!unreachable(UnreachableReason::TimedOut, Sent::NotSent));
        assert!(!is_hopeless(&Rejection::new(ErrorCode::Internal)));
        let denied = Rejection::unreachable(UnreachableReason::Denied, Sent::NotSent);
        assert!(is_final(&denied, false));
        assert!(!is_final(&denied, true), "an earlier try may have been accepted");
        assert!(is_final(&Rejection::new(ErrorCode::NotAuthorized), true));
    }
}

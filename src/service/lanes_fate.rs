//! What becomes of frames that the other side did not take: tried again later, or over for good. The one place that tells the two
//! apart (X8). Pure.

use std::time::Duration;

use crate::base::limits::LANE_RETRY_AFTER_MAX;
use crate::federation::{PeerError, Why};
use crate::storage::dead_letters::DeadReason;
use crate::wire::error::Retry;
use crate::wire::peer::LaneResult;
use crate::wire::{ErrorCode, Rejection};

/// Frames of one lane that were sent in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentFrames {
    /// The sequence of the first.
    pub(super) first: u64,
    /// How many; at least one.
    pub(super) count: usize,
    /// Whether the first is a `reset`.
    pub(super) has_reset: bool,
    /// The first sequence of the lane that is still on disk here.
    pub(super) first_here: u64,
}

/// What becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// All are durable there.
    Delivered,
    /// It will pass by itself: the same again, after a back-off and not before this has passed.
    Later(Option<Duration>),
    /// One of them, at least, is refused for good: fewer at once, until it stands alone.
    Fewer,
    /// Even a `reset` is refused for good: nothing of this lane is wanted there. Tried again all the same, less and less often.
    Unwanted,
    /// The lane's incarnation is over.
    Over(Over),
}

/// How an incarnation ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// Why.
    pub(super) reason: DeadReason,
    /// What to tell an operator: one line.
    pub(super) detail: String,
    /// The first sequence that is not lost.
    pub(super) keep_from: u64,
    /// The frames that are lost and not on disk any more: the first, and how many.
    pub(super) missing: Option<(u64, u64)>,
}

/// Whether a refusal with this code will pass by itself. A code that asks for a change has none to hope for: a frame is what it is.
fn passes(code: ErrorCode) -> bool {
    code.retry() == Retry::Later
}

/// What the answer to one lane's frames means.
pub(super) fn of_result(result: &LaneResult, sent: &SentFrames) -> Fate {
    match result {
        LaneResult::Accepted(_) => Fate::Delivered,
        LaneResult::Refused(rejection) => of_refusal(rejection, sent),
        LaneResult::Gap(expected) => of_gap(*expected, sent),
    }
}

/// What a refusal of a lane's frames means, or of a whole request with them.
pub(super) fn of_refusal(rejection: &Rejection, sent: &SentFrames) -> Fate {
    if passes(rejection.code) {
        let wait = rejection.as_rate_limited().map(|detail| Duration::from_millis(detail.retry_after_ms));
        return Fate::Later(wait.map(|wait| wait.min(LANE_RETRY_AFTER_MAX)));
    }
    if rejection.code == ErrorCode::LaneConflict {
        return conflict(sent, format!("{rejection}: the other side has other frames under these sequences"));
    }
    refused(sent, &format!("the other side refused it: {rejection}"))
}

/// What it means that a request with frames got no answer.
pub(super) fn of_failure(error: &PeerError, sent: &SentFrames) -> Fate {
    match error.why {
        // The one thing that the way itself says of a frame: it does not fit.
        Why::TooLarge => refused(sent, &error.to_string()),
        _ => Fate::Later(None),
    }
}

fn refused(sent: &SentFrames, detail: &str) -> Fate {
    if sent.count > 1 {
        return Fate::Fewer;
    }
    if sent.has_reset {
        return Fate::Unwanted;
    }
    let detail = detail.to_owned();
    Fate::Over(Over { reason: DeadReason::Refused, detail, keep_from: sent.first + 1, missing: None })
}

fn conflict(sent: &SentFrames, detail: String) -> Fate {
    // A reset is no message: another one takes its place.
    let keep_from = sent.first + u64::from(sent.has_reset);
    Fate::Over(Over { reason: DeadReason::Conflict, detail, keep_from, missing: None })
}

fn of_gap(expected: u64, sent: &SentFrames) -> Fate {
    if expected > sent.first {
        return conflict(sent, format!("the other side waits for frame {expected} though it was sent {} on", sent.first));
    }
    if expected >= sent.first_here {
        // What is missing is here: the next try begins with it.
        return Fate::Later(None);
    }
    let detail = format!("the other side waits for frame {expected}, which it had acknowledged: it has lost what it knew");
    let missing = Some((expected, sent.first_here - expected));
    Fate::Over(Over { reason: DeadReason::Gap, detail, keep_from: sent.first_here, missing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::Sent;

    const FEW: SentFrames = SentFrames { first: 7, count: 3, has_reset: false, first_here: 6 };
    const ONE: SentFrames = SentFrames { count: 1, ..FEW };
    const RESET: SentFrames = SentFrames { first: 1, count: 1, has_reset: true, first_here: 1 };

    fn over(fate: Fate) -> (DeadReason, u64, Option<(u64, u64)>) {
        let Fate::Over(over) = fate else { panic!("{fate:?}") };
        (over.reason, over.keep_from, over.missing)
    }

    // Each code is one of the two, and nothing that passes ever costs a frame.
    #[test]
    fn every_code_passes_or_is_for_good() {
        let passing = [ErrorCode::RateLimited, ErrorCode::UnreachableDomain, ErrorCode::Internal, ErrorCode::ShuttingDown];
        for code in ErrorCode::ALL {
            let fates = [FEW, ONE, RESET].map(|sent| of_refusal(&Rejection::new(*code), &sent));
            if passing.contains(code) {
                assert_eq!(fates, [const { Fate::Later(None) }; 3], "{}", code.name());
                continue;
            }
            let [few, one, reset] = fates;
            if *code == ErrorCode::LaneConflict {
                assert_eq!(over(few), (DeadReason::Conflict, 7, None), "no frame is known to be lost");
                assert_eq!(over(one), (DeadReason::Conflict, 7, None));
                assert_eq!(over(reset), (DeadReason::Conflict, 2, None), "another reset takes the place of this one");
            } else {
                assert_eq!(few, Fate::Fewer, "{}", code.name());
                assert_eq!(over(one), (DeadReason::Refused, 8, None), "{}", code.name());
                assert_eq!(reset, Fate::Unwanted, "{}", code.name());
            }
        }
    }

    #[test]
    fn a_rate_limit_says_how_long_and_is_not_believed_for_ever() {
        let wait = |wait| of_refusal(&Rejection::rate_limited(wait), &FEW);
        assert_eq!(wait(Duration::from_secs(7)), Fate::Later(Some(Duration::from_secs(7))));
        assert_eq!(wait(Duration::MAX), Fate::Later(Some(LANE_RETRY_AFTER_MAX)));
    }

    #[test]
    fn a_gap_that_can_be_filled_is_filled() {
        for here in [6, 7] {
            assert_eq!(of_result(&LaneResult::Gap(here), &FEW), Fate::Later(None));
        }
        assert_eq!(over(of_result(&LaneResult::Gap(2), &FEW)), (DeadReason::Gap, 6, Some((2, 4))));
        assert_eq!(over(of_result(&LaneResult::Gap(8), &FEW)), (DeadReason::Conflict, 7, None), "it was sent frame 7");
    }

    #[test]
    fn only_a_size_is_for_good_where_there_is_no_answer() {
        let error =
            |why| PeerError { peer: "b.test".parse().expect("a domain"), why, sent: Sent::NotSent, detail: String::new() };
        for why in [Why::NoSuchDomain, Why::Unreachable, Why::TimedOut, Why::Certificate, Why::Denied, Why::Held, Why::Closed] {
            assert_eq!(of_failure(&error(why), &ONE), Fate::Later(None));
        }
        assert_eq!(of_failure(&error(Why::TooLarge), &FEW), Fate::Fewer);
        assert_eq!(over(of_failure(&error(Why::TooLarge), &ONE)), (DeadReason::Refused, 8, None));
    }
}

//! What a joiner needs to see: the past state for a Welcome, or the current one for an external Commit (S11).

use super::external::check_may_look;
use super::{GroupState, Sender};
use crate::base::rule::on;
use crate::wire::ds::WelcomeInfo;
use crate::wire::{ErrorCode, Rejection};

/// DS-080: welcome_info is for the pending joiner of that epoch, under the KeyPackageRef it was added with. Returns the epoch
/// whose tree it gets.
pub(super) fn welcome_info(state: &GroupState, sender: &Sender, body: &WelcomeInfo) -> Result<u64, Rejection> {
    let sender = sender.joiner()?;
    let mut joiners = state.head.joiners.iter();
    let awaited = joiners.any(|joiner| joiner.leaf_index == sender.leaf_index && joiner.epoch == body.epoch);
    if on("DS-080") && !awaited { Err(ErrorCode::NotAuthorized.into()) } else { Ok(body.epoch) }
}

/// external_commit_info: a member's, its user's, or anybody's where the join policy is open.
pub(super) fn external_commit_info(state: &GroupState, sender: &Sender) -> Result<(), Rejection> {
    match sender {
        Sender::User(user) => check_may_look(state, &user.user),
        _ => sender.leaf().map(|_| ()),
    }
}

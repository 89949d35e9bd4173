//! welcome_info: the past state that a Welcome joiner needs (S11).

use super::{Authenticated, GroupState};
use crate::wire::ds::{DsMessage, DsSenderId, WelcomeInfo};
use crate::wire::{ErrorCode, Rejection};

/// DS-080: welcome_info is for the pending joiner of that epoch, under the KeyPackageRef it was added with. Returns the epoch
/// whose tree it gets.
pub fn decide(state: &GroupState, sender: &Authenticated, message: &DsMessage, body: &WelcomeInfo) -> Result<u64, Rejection> {
    let DsSenderId::KeyPackageRef(reference) = &message.sender_id else { return Err(ErrorCode::NotAuthorized.into()) };
    let awaited = state.head.joiners.iter().any(|joiner| {
        joiner.leaf_index == sender.leaf_index && joiner.epoch == body.epoch && joiner.key_package_ref[..] == reference[..]
    });
    if awaited { Ok(body.epoch) } else { Err(ErrorCode::NotAuthorized.into()) }
}

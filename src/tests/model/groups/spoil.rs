//! What can be wrong with a request.

use super::super::Spoil;
use super::{Ask, World};
use crate::wire::Opaque;
use crate::wire::ds::*;

impl World {
    /// Spoils an envelope; returns whether it is spoilt.
    pub(super) fn spoil(&self, index: usize, ask: &mut Ask, spoil: Spoil) -> bool {
        match spoil {
            Spoil::Key(device) => {
                let key = &self.people.devices[self.device(device)].key;
                let other = key.public() != ask.key.public();
                ask.key = key.clone();
                other
            }
            Spoil::Through(domain) => {
                let through = &self.people.domains[usize::from(domain) % self.people.domains.len()];
                let other = *through != ask.through;
                ask.through = through.clone();
                other
            }
            Spoil::Leaf => {
                ask.sender = DsSenderId::LeafIndex(1_000);
                true
            }
            Spoil::Group => {
                let other = &self.groups[(index + 1) % self.groups.len()];
                match update_of(&mut ask.request) {
                    // What has no MLS message in it says nowhere else which group it is for.
                    Some((group_id, _)) if self.groups.len() > 1 => {
                        *group_id = other.room.id();
                        true
                    }
                    _ => false,
                }
            }
            // Nobody but a member can tell whether a PrivateMessage or a membership tag, of 33 octets, is right.
            Spoil::Bit(_) if matches!(ask.request, DsRequest::SendMessage(_)) => false,
            Spoil::Bit(bit) => spoil_message(&mut ask.request, |message| flip(message, bit, 33)),
            Spoil::InfoBit(bit) => match update_of(&mut ask.request) {
                Some((_, Some(update))) => flip(&mut update.group_info, bit, 0),
                _ => false,
            },
            Spoil::Cut(at) => spoil_message(&mut ask.request, |message| {
                *message = message[..usize::from(at) % message.len()].into();
                true
            }),
            Spoil::NoWelcome | Spoil::TwoWelcomes => match &mut ask.request {
                DsRequest::AddUsers(body) | DsRequest::AddClients(body) if !body.welcomes.is_empty() => {
                    let welcomes = if spoil == Spoil::NoWelcome { Vec::new() } else { vec![body.welcomes[0].clone(); 2] };
                    body.welcomes = welcomes.into();
                    true
                }
                _ => false,
            },
            Spoil::Nothing | Spoil::Stale | Spoil::Uncovered => false,
        }
    }
}

/// A request that carries an MLS message: where it says which group it is for, and the Commit and GroupInfo if it has them.
fn update_of(request: &mut DsRequest) -> Option<(&mut Opaque, Option<&mut GroupUpdate>)> {
    Some(match request {
        DsRequest::AddUsers(body) | DsRequest::AddClients(body) => (&mut body.group_id, Some(&mut body.group_update)),
        DsRequest::RemoveUsers(body)
        | DsRequest::RemoveClients(body)
        | DsRequest::UpdateClient(body)
        | DsRequest::UpdateGroup(body)
        | DsRequest::DeleteGroup(body) => (&mut body.group_id, Some(&mut body.group_update)),
        DsRequest::JoinGroup(body) | DsRequest::JoinClient(body) | DsRequest::ResyncClient(body) => {
            (&mut body.group_id, Some(&mut body.group_update))
        }
        DsRequest::SendMessage(body) => (&mut body.group_id, None),
        DsRequest::Propose(body) => (&mut body.group_id, None),
        _ => return None,
    })
}

/// Spoils the Commit, proposal or message of a request.
fn spoil_message(request: &mut DsRequest, spoil: impl FnOnce(&mut Opaque) -> bool) -> bool {
    match request {
        DsRequest::SendMessage(body) => spoil(&mut body.message),
        DsRequest::Propose(body) => {
            let mut message = body.proposals[0].clone();
            let spoilt = spoil(&mut message);
            body.proposals = vec![message].into();
            spoilt
        }
        other => match update_of(other) {
            Some((_, Some(update))) => spoil(&mut update.commit),
            _ => false,
        },
    }
}

/// Flips a bit of all but the last `tail` octets.
fn flip(octets: &mut Opaque, bit: u16, tail: usize) -> bool {
    let mut changed = octets.to_vec();
    let count = changed.len().saturating_sub(tail);
    if count == 0 {
        return false;
    }
    // 16 bits, spread over what may be a long message.
    changed[usize::from(bit) * 31 % count] ^= 1 << (bit % 8);
    *octets = changed.into();
    true
}

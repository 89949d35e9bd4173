//! Becoming a member by a Welcome (R6): what it claims is checked before this client is in.

use openmls::group::MlsGroup;
use openmls::prelude::Welcome;
use serde_json::json;

use super::core::Core;
use super::event::Event;
use super::mls::{self, LeafClaim};
use super::receive::{Need, Seen, Unapplied, WaitingWelcome, bad};
use super::state::{Group, GroupStatus};
use crate::base::{Fault, GroupUri, UnixMillis};
use crate::wire::qs::QueueEntry;
use crate::wire::reply::GroupState;

impl Core {
    pub(super) fn apply_welcome(
        &mut self,
        group: &GroupUri,
        entry: &QueueEntry,
        welcome: Welcome,
        tree: Option<&GroupState>,
    ) -> std::result::Result<Seen, Unapplied> {
        if self.groups.get(group).is_some_and(MlsGroup::is_active)
            && self.state.groups.get(&group.to_string()).is_some_and(|kept| kept.status != GroupStatus::Stuck)
        {
            return bad("welcome", "refused", "already a member of the group");
        }
        if self.waits_for_join(group, entry.epoch) {
            return Err(Unapplied::Waits(Need::OwnCommit));
        }
        let Some(reference) = mls::own_reference(&self.provider, &welcome) else {
            return bad("welcome", "undecryptable", "the Welcome is for no KeyPackage that is still here");
        };
        if self.domain_info(group.hub()).is_none() {
            return Err(Unapplied::Waits(Need::Domain(group.hub().clone())));
        }
        let Some(tree) = tree else {
            let (sequence, epoch, arrived_at_ms) = (entry.sequence, entry.epoch, entry.arrived_at_ms);
            return Err(Unapplied::Waits(Need::Tree(WaitingWelcome { sequence, reference, epoch, arrived_at_ms })));
        };
        // Opening the Welcome consumes the KeyPackage: all or nothing.
        let kept = self.provider.values(Clone::clone);
        let joined = self.join(group, entry, welcome, tree);
        match &joined {
            Err(Unapplied::Waits(_)) => self.provider.replace_values(kept),
            // Somebody who can never say anything would stay in the group.
            Err(Unapplied::Bad { .. }) => self.decline(group, &reference),
            Ok(_) | Err(Unapplied::Fault(_)) => {}
        }
        joined
    }

    fn join(
        &mut self,
        group: &GroupUri,
        entry: &QueueEntry,
        welcome: Welcome,
        tree: &GroupState,
    ) -> std::result::Result<Seen, Unapplied> {
        let wrong = |why: String| Unapplied::Bad { seen: Box::new(Seen::new("welcome", "undecryptable")), why };
        let staged = mls::stage_welcome(&self.provider, welcome, &tree.ratchet_tree).map_err(wrong)?;
        let context = staged.group_context();
        if context.group_id().as_slice() != group.to_bytes() || context.epoch().as_u64() != entry.epoch {
            return Err(wrong("the Welcome is for another group or epoch than its entry says".into()));
        }
        let hub = self.domain_info(group.hub()).ok_or_else(|| Fault::new("the hub's keys were just there"))?;
        if !mls::external_senders(context.extensions()).iter().any(|sender| **sender == *hub.external_sender) {
            return Err(wrong("the group does not have its hub's Delivery Service among its external senders".into()));
        }
        for member in staged.members() {
            let claim = LeafClaim::new(&member.credential, &member.signature_key).map_err(wrong)?;
            let domain = claim.domain().map_err(wrong)?;
            let arrived = UnixMillis(entry.arrived_at_ms);
            let roots = self.roots_for(&domain, &claim.chain, arrived).ok_or(Unapplied::Waits(Need::Domain(domain)))?;
            // A client that lost its keys may be there twice until its old leaf is removed (X6).
            claim.check_existing(&roots, arrived).map_err(wrong)?;
        }
        let inviter = staged.welcome_sender().ok().and_then(|leaf| mls::client_of(leaf.credential()).ok());
        let mls = staged
            .into_group(&self.provider)
            .map_err(|error| Unapplied::Fault(Fault::new(format!("could not join: {error}"))))?;
        self.groups.insert(group.clone(), mls);
        self.keep_proposals(group, &tree.proposals.iter().map(|proposal| proposal.to_vec()).collect::<Vec<_>>());
        self.became_member(group, None, None);
        Ok(Seen::new("welcome", "ok").by(inviter))
    }

    /// What follows from being a member now, as a joiner or as the creator.
    pub(super) fn became_member(&mut self, group: &GroupUri, name: Option<String>, queue_generation: Option<u32>) {
        let epoch = self.groups.get(group).map_or(0, |mls| mls.epoch().as_u64());
        // Who comes back finds the group under the name it gave it.
        let name = name.or_else(|| self.state.groups.get(&group.to_string()).and_then(|kept| kept.name.clone()));
        let leaf_renewed_ms = self.now().0;
        let kept = Group { status: GroupStatus::Member, name, queue_generation, leaf_renewed_ms, lost: false };
        self.state.groups.insert(group.to_string(), kept);
        self.record("joined", json!({ "group": group.to_string(), "epoch": epoch }));
        self.record_epoch(group);
        self.new_events.push(Event::Joined { group: group.clone(), epoch });
    }
}

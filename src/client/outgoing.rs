//! Making what goes out, and taking in what came of it. A request and the ratchet state that made it are one state write, before
//! anything is sent; so is its answer together with what follows from it.

use openmls::group::{MlsGroup, StagedCommit};
use openmls::prelude::{KeyPackage, KeyPackageRef, LeafNodeIndex};
use openmls_traits::OpenMlsProvider as _;
use serde_json::json;

use super::core::{Core, Result};
use super::error::ClientError;
use super::mls::{self, Change};
use super::state::{Blob, Group, GroupStatus, KeptKeyPackage, Outgoing, Plan, Purpose};
use crate::base::bytes::hex;
use crate::base::crypto::{random, sha256};
use crate::base::ids::{InviteId, RequestId};
use crate::base::{ClientUri, Domain, Fault, GroupUri, UnixMillis, limits};
use crate::wire::ds::{
    ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupUpdate, SendMessage,
    UpdateQueueInfo, WelcomeInfo,
};
use crate::wire::error::{ErrorCode, PendingProposals};
use crate::wire::keys::{KeysMessage, KeysRequest, PublishKeyPackages};
use crate::wire::qs::{Invite, QueueBinding};
use crate::wire::reply::MessageAccepted;
use crate::wire::request::Service;
use crate::wire::{List, Opaque, Rejection, Reply, decode, encode};

/// What a node answered.
pub(super) type Answer = std::result::Result<Reply, Rejection>;

/// What came of a Commit.
#[derive(Debug)]
pub(super) enum CommitOutcome {
    /// It began this epoch.
    Won(u64),
    /// Another one was accepted at this epoch; ours is withdrawn and waits in the outbox to be made anew.
    Lost { epoch: u64 },
    /// The hub wants its Removes committed first; they are kept now, and ours waits in the outbox to be made anew.
    Proposals,
    /// Refused for good.
    Refused(Rejection),
}

/// What came of an application message.
#[derive(Debug)]
pub(super) enum MessageOutcome {
    /// The hub has it.
    Accepted(MessageAccepted),
    /// The group has moved on since it was encrypted; it waits in the outbox to be made anew.
    Outdated,
    /// The hub wants its Removes committed first; they are kept now, and the message waits in the outbox to be made anew.
    Proposals,
    /// Refused as it is now, but so old that the answer to an earlier try may be forgotten: it may have been accepted.
    Unknown,
    /// Refused for good.
    Refused(Rejection),
}

/// A DS request by a member, or by KeyPackage.
pub(super) fn ds(sender_id: DsSenderId, request: DsRequest) -> Service {
    Service::Ds(DsMessage { sender_id, certificates: List::default(), request })
}

/// The PendingProposals detail of a rejection, as octets of each.
fn pending(rejection: &Rejection) -> Vec<Vec<u8>> {
    let detail = decode::<PendingProposals>(&rejection.detail).map(|detail| detail.proposals.into_vec());
    detail.unwrap_or_default().into_iter().map(Opaque::into_vec).collect()
}

impl Core {
    /// Puts a request into the outbox, in the place of the stale one that it replaces. The caller saves.
    pub(super) fn enqueue(
        &mut self,
        destination: &Domain,
        service: &Service,
        purpose: Purpose,
        replaces: Option<RequestId>,
    ) -> Outgoing {
        let outgoing = Outgoing {
            request: RequestId::random(),
            destination: destination.to_string(),
            service: Blob(encode(service)),
            purpose,
            made_at_ms: self.now().0,
            stale: false,
        };
        match self.state.outbox.iter_mut().find(|kept| Some(kept.request) == replaces) {
            Some(stale) => *stale = outgoing.clone(),
            None => self.state.outbox.push(outgoing.clone()),
        }
        outgoing
    }

    /// Notes that a request is of no more use as it is. What it was for stays until its successor is there. The caller saves.
    pub(super) fn make_stale(&mut self, request: RequestId) {
        if let Some(kept) = self.state.outbox.iter_mut().find(|kept| kept.request == request) {
            kept.stale = true;
        }
    }

    /// Gives up a stale request: it is done otherwise, or cannot be done any more.
    pub(super) fn withdraw(&mut self, request: RequestId) -> Result<()> {
        match self.take_outgoing(request) {
            Some(_) => self.save(),
            None => Ok(()),
        }
    }

    /// The messages to `group` in the outbox, oldest first.
    pub(super) fn messages_out(&self, group: &GroupUri) -> Vec<Outgoing> {
        let name = group.to_string();
        let to_group = |outgoing: &&Outgoing| matches!(&outgoing.purpose, Purpose::Message { group, .. } if *group == name);
        self.state.outbox.iter().filter(to_group).cloned().collect()
    }

    /// Whether an answer that was lost may be forgotten by now where it was given.
    fn outlived_answers(&self, made_at_ms: u64) -> bool {
        let kept_ms = u64::try_from(limits::ANSWERS_KEPT.as_millis()).unwrap_or(u64::MAX);
        self.now().0.saturating_sub(made_at_ms) >= kept_ms
    }

    pub(super) fn take_outgoing(&mut self, request: RequestId) -> Option<Outgoing> {
        let at = self.state.outbox.iter().position(|outgoing| outgoing.request == request)?;
        Some(self.state.outbox.remove(at))
    }

    /// The client's chain as requests carry it.
    pub(super) fn certificates(&self) -> List<Opaque> {
        self.leaf.chain.iter().map(|der| Opaque::from(der.as_slice())).collect()
    }

    /// The Commit of `group` in the outbox, if there is one: unanswered, or to be made anew.
    pub(super) fn pending_commit(&self, group: &GroupUri) -> Option<Outgoing> {
        let name = group.to_string();
        let of_group = |outgoing: &&Outgoing| matches!(&outgoing.purpose, Purpose::Commit { group, .. } if *group == name);
        self.state.outbox.iter().find(of_group).cloned()
    }

    // --- KeyPackages -------------------------------------------------------------------------------------------------

    /// Makes `count` KeyPackages, and one of last resort if wanted, and the request that publishes them.
    pub(super) fn make_key_packages(&mut self, count: u32, last_resort: bool, now: UnixMillis) -> Result<Outgoing> {
        let (expires_at_ms, generation) = (mls::key_package_expiry(now).0, self.queue()?.generation);
        let mut made = Vec::new();
        for last_resort in (0..count).map(|_| false).chain(last_resort.then_some(true)) {
            let invite = Invite { invite_id: InviteId::random(), last_resort: u8::from(last_resort), expires_at_ms };
            let config = self.queue_config(QueueBinding::Invite(invite))?;
            let new = mls::new_key_package(&self.provider, &self.leaf, &config, last_resort)?;
            self.state.key_packages.push(KeptKeyPackage {
                reference: Blob(new.reference.as_slice().to_vec()),
                last_resort,
                expires_at_ms,
                generation,
            });
            made.push(Opaque::from(new.message));
        }
        let last_resort = if last_resort { made.pop() } else { None };
        let request = KeysRequest::Publish(PublishKeyPackages { key_packages: made.into(), last_resort });
        let service = Service::Keys(KeysMessage { certificates: self.certificates(), request });
        let outgoing = self.enqueue(&self.me.domain().clone(), &service, Purpose::KeyPackages, None);
        self.save()?;
        Ok(outgoing)
    }

    // --- groups ------------------------------------------------------------------------------------------------------

    /// Sets up a new group on the own domain and the request that creates it.
    pub(super) fn make_group(&mut self, name: Option<String>) -> Result<Outgoing> {
        let domain = self.me.domain().clone();
        let info = self.domain_info(&domain).ok_or_else(|| Fault::new("the own domain's keys are not known"))?;
        let group = GroupUri::new(&domain, &random());
        let config = self.queue_config(QueueBinding::Hub(domain.as_bytes().into()))?;
        let key_package = mls::new_key_package(&self.provider, &self.leaf, &config, false)?;
        // It proves who asks and is never used to join anything.
        self.provider.forget_key_package(&key_package.reference)?;
        let (mls, group_info) = mls::create_group(&self.provider, &self.leaf, &group, &info.external_sender)?;
        let request = DsRequest::CreateGroup(CreateGroup {
            group_id: group.to_bytes().into(),
            key_package: key_package.message.into(),
            client_queue_config: config,
            group_info: group_info.into(),
        });
        let service = ds(DsSenderId::KeyPackageRef(key_package.reference.as_slice().into()), request);
        let outgoing = self.enqueue(&domain, &service, Purpose::CreateGroup { group: group.to_string() }, None);
        let generation = self.queue()?.generation;
        let kept = Group {
            status: GroupStatus::Creating,
            name,
            queue_generation: Some(generation),
            leaf_renewed_ms: self.now().0,
            lost: false,
        };
        self.state.groups.insert(group.to_string(), kept);
        self.groups.insert(group, mls);
        self.save()?;
        Ok(outgoing)
    }

    /// Takes in the answer to a request that is neither Commit nor message.
    pub(super) fn settle_other(&mut self, request: RequestId, answer: Answer) -> Result<()> {
        let Some(outgoing) = self.take_outgoing(request) else { return Ok(()) };
        let refused = answer.err();
        if let Purpose::CreateGroup { group } = &outgoing.purpose {
            let uri: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
            if refused.is_none() {
                let name = self.state.groups.get(group).and_then(|kept| kept.name.clone());
                let bound = self.state.groups.get(group).and_then(|kept| kept.queue_generation);
                self.became_member(&uri, name, bound);
            } else {
                if let Some(mut mls) = self.groups.remove(&uri) {
                    mls.delete(self.provider.storage()).map_err(|error| Fault::because("could not forget a group", error))?;
                }
                self.state.groups.remove(group);
            }
        }
        self.save()?;
        refused.map_or(Ok(()), |rejection| Err(rejection.into()))
    }

    /// `update_queue_info` for `group`: a queue config bound to its hub instead of to an invitation (X3).
    pub(super) fn queue_update(&self, group: &GroupUri) -> Result<Service> {
        let mls = self.member_of(group)?;
        let client_queue_config: ClientQueueConfig = self.queue_config(QueueBinding::Hub(group.hub().as_bytes().into()))?;
        let request = UpdateQueueInfo { group_id: group.to_bytes().into(), client_queue_config };
        Ok(ds(DsSenderId::LeafIndex(mls.own_leaf_index().u32()), DsRequest::UpdateQueueInfo(request)))
    }

    // --- Commits -----------------------------------------------------------------------------------------------------

    /// Whether the hub has proposed to remove this client: then it may neither commit nor send (S13).
    pub(super) fn is_going(&self, group: &GroupUri) -> bool {
        self.groups.get(group).is_some_and(|mls| mls::pending_removes(mls).contains(&mls.own_leaf_index()))
    }

    /// What is left to do of `plan`; `None` when nothing is. A Commit of nothing but what is pending is `Cover`.
    pub(super) fn left_of(&self, group: &GroupUri, plan: &Plan) -> Result<Option<Plan>> {
        let mls = self.member_of(group)?;
        let members = self.members_now(group);
        let has_user = |user: &String| members.iter().any(|client| client.user().to_string() == *user);
        let has_client = |client: &String| members.iter().any(|member| member.to_string() == *client);
        let some = |names: Vec<String>| Some(names).filter(|names| !names.is_empty());
        let left = match plan {
            Plan::Update | Plan::Delete => Some(plan.clone()),
            Plan::Cover => None,
            Plan::Add(users) => some(users.iter().filter(|user| !has_user(user)).cloned().collect()).map(Plan::Add),
            Plan::Remove(users) => some(users.iter().filter(|user| has_user(user)).cloned().collect()).map(Plan::Remove),
            Plan::AddClients(users) => some(users.iter().filter(|user| has_user(user)).cloned().collect()).map(Plan::AddClients),
            Plan::RemoveClients(clients) => {
                some(clients.iter().filter(|client| has_client(client)).cloned().collect()).map(Plan::RemoveClients)
            }
            Plan::Policy { open } => (mls::is_open(mls) != *open).then(|| plan.clone()),
        };
        Ok(left.or_else(|| mls.has_pending_proposals().then_some(Plan::Cover)))
    }

    /// What is still to be committed of `plan` now that KeyPackages for it are claimed: clients that are members already need
    /// none. `None` when nothing is left.
    pub(super) fn missing_of(
        &self,
        group: &GroupUri,
        plan: &Plan,
        mut claimed: Vec<KeyPackage>,
    ) -> Result<Option<(Plan, Vec<KeyPackage>)>> {
        if matches!(plan, Plan::AddClients(_)) {
            let members = self.members_now(group);
            claimed.retain(|package| {
                mls::client_of(package.leaf_node().credential()).is_ok_and(|client| !members.contains(&client))
            });
            if claimed.is_empty() {
                return Ok(self.has_proposals(group).then_some((Plan::Cover, claimed)));
            }
        }
        Ok(Some((plan.clone(), claimed)))
    }

    /// Whether the group waits for a Commit of pending proposals (S13).
    pub(super) fn has_proposals(&self, group: &GroupUri) -> bool {
        self.groups.get(group).is_some_and(|mls| mls.has_pending_proposals())
    }

    /// What a Commit of `plan` does by value. What proposals of the hub do is not done twice.
    fn change_of(&self, group: &GroupUri, plan: &Plan, adds: Vec<KeyPackage>) -> Result<Change> {
        let mls = self.member_of(group)?;
        let (own, covered) = (mls.own_leaf_index(), mls::pending_removes(mls));
        if covered.contains(&own) {
            return Err(ClientError::Invalid(format!("the hub is about to remove this client from {group}")));
        }
        let removed = |wanted: &dyn Fn(LeafNodeIndex, &ClientUri) -> bool| {
            let members =
                mls::members(mls).into_iter().filter(|(index, client)| !covered.contains(index) && wanted(*index, client));
            members.map(|(index, _)| index).collect::<Vec<_>>()
        };
        let (me, user) = (self.me.to_string(), self.me.user().to_string());
        let mut change = Change { adds, ..Change::default() };
        match plan {
            Plan::Update | Plan::Cover => change.update = true,
            Plan::Add(_) | Plan::AddClients(_) => {}
            Plan::Remove(users) if users.contains(&user) => {
                return Err(ClientError::Invalid("a client cannot remove its own user: it leaves".into()));
            }
            Plan::RemoveClients(clients) if clients.contains(&me) => {
                return Err(ClientError::Invalid("a client cannot remove itself: it leaves".into()));
            }
            Plan::Remove(users) => change.removes = removed(&|_, client| users.contains(&client.user().to_string())),
            Plan::RemoveClients(clients) => change.removes = removed(&|_, client| clients.contains(&client.to_string())),
            Plan::Policy { open } => change.extensions = Some(mls::with_join_policy(mls, *open)?),
            Plan::Delete => {
                change.removes = removed(&|index, _| index != own);
                change.update = true;
            }
        }
        // Nothing by value is a Commit of what is pending, with a path.
        change.update |= change.adds.is_empty() && change.removes.is_empty() && change.extensions.is_none();
        Ok(change)
    }

    /// Makes a Commit and the request that carries it, in the place of the stale one that it replaces.
    pub(super) fn make_commit(
        &mut self,
        group: &GroupUri,
        plan: Plan,
        adds: Vec<KeyPackage>,
        replaces: Option<RequestId>,
    ) -> Result<Outgoing> {
        if self.pending_commit(group).is_some_and(|kept| !kept.stale || Some(kept.request) != replaces) {
            return Err(ClientError::Invalid(format!("a Commit in {group} is not answered yet")));
        }
        let change = self.change_of(group, &plan, adds)?;
        let by_value = !change.adds.is_empty() || !change.removes.is_empty() || change.extensions.is_some();
        let mls = self.groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        let (epoch, leaf_index) = (mls.epoch().as_u64(), mls.own_leaf_index().u32());
        let made = mls::commit(&self.provider, &self.leaf, mls, change)?;
        if let Err(error) = self.check_own_commit(group) {
            // Neither sent nor tried again with the same proposals.
            if let Some(mls) = self.groups.get_mut(group) {
                let storage = self.provider.storage();
                mls.clear_pending_commit(storage).map_err(|error| Fault::because("could not withdraw a Commit", error))?;
                mls.clear_pending_proposals(storage).map_err(|error| Fault::because("could not forget proposals", error))?;
            }
            self.save()?;
            return Err(error);
        }
        let hash = sha256(&made.commit);
        let group_id = Opaque::from(group.to_bytes());
        let group_update = GroupUpdate { commit: made.commit.into(), group_info: made.group_info.into() };
        let request = match (&plan, made.welcome) {
            (Plan::Delete, _) => DsRequest::DeleteGroup(GroupCommit { group_id, group_update }),
            // What was to be done is done by proposals of the hub, which every Commit has to carry.
            (Plan::Remove(_) | Plan::RemoveClients(_), _) if !by_value => {
                DsRequest::UpdateClient(GroupCommit { group_id, group_update })
            }
            (Plan::Update | Plan::Cover, _) => DsRequest::UpdateClient(GroupCommit { group_id, group_update }),
            (Plan::Remove(_), _) => DsRequest::RemoveUsers(GroupCommit { group_id, group_update }),
            (Plan::RemoveClients(_), _) => DsRequest::RemoveClients(GroupCommit { group_id, group_update }),
            (Plan::Policy { .. }, _) => DsRequest::UpdateGroup(GroupCommit { group_id, group_update }),
            (Plan::Add(_) | Plan::AddClients(_), welcome) => {
                let welcomes = welcome.into_iter().map(Opaque::from).collect();
                let body = GroupAdd { group_id, group_update, welcomes };
                if matches!(plan, Plan::Add(_)) { DsRequest::AddUsers(body) } else { DsRequest::AddClients(body) }
            }
        };
        let service = ds(DsSenderId::LeafIndex(leaf_index), request);
        let purpose = Purpose::Commit { group: group.to_string(), epoch, hash, plan };
        let outgoing = self.enqueue(group.hub(), &service, purpose, replaces);
        let fields = json!({
            "group": group.to_string(), "request": outgoing.request.to_string(), "commit": hex(&hash), "epoch": epoch,
        });
        self.record("committing", fields);
        self.save()?;
        Ok(outgoing)
    }

    /// Takes in the answer to a Commit: applies or withdraws it, then what waited for that.
    pub(super) fn settle_commit(&mut self, request: RequestId, answer: Answer) -> Result<CommitOutcome> {
        let found = self.state.outbox.iter().find(|outgoing| outgoing.request == request).cloned();
        let Some(Outgoing { purpose: Purpose::Commit { group, epoch, hash, plan }, stale: false, .. }) = found else {
            return Err(ClientError::Invalid("the Commit was settled by another operation".into()));
        };
        let uri: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        let won = match &answer {
            Ok(Reply::CommitAccepted(receipt)) => {
                if !self.receipt_is_good(&uri, epoch + 1, &hash, receipt) {
                    return Err(ClientError::Untrusted(format!("{group}: the hub's receipt is not its own")));
                }
                true
            }
            Ok(_) => return Err(ClientError::Untrusted(format!("{group}: the hub accepted a Commit without a receipt"))),
            // Accepted, but the answer was lost and is no longer stored.
            Err(rejection) => rejection.as_wrong_epoch().is_some_and(|detail| detail.accepted_commit_hash == Some(hash)),
        };
        let mine = self.groups.get(&uri).is_some_and(|mls| mls.epoch().as_u64() == epoch && mls.pending_commit().is_some());
        if won && !mine {
            return Err(ClientError::Untrusted(format!("{group}: the hub accepted two Commits in epoch {epoch}")));
        }
        let mut fields = json!({
            "group": group, "request": request.to_string(), "commit": hex(&hash), "epoch": epoch + 1,
        });
        let outcome = if won {
            self.take_outgoing(request);
            let before = self.members_now(&uri);
            let renewed = self.groups.get(&uri).and_then(MlsGroup::pending_commit).is_some_and(has_path);
            self.merge(&uri, None)?;
            self.record("commit_accepted", fields);
            let me = self.me.clone();
            self.entered_epoch(&uri, before, &me)?;
            let now_ms = self.now().0;
            if let Some(kept) = self.group_mut(&uri).filter(|_| renewed) {
                kept.leaf_renewed_ms = now_ms;
            }
            if plan == Plan::Delete {
                self.forget_group(&uri, GroupStatus::Deleted)?;
            }
            CommitOutcome::Won(epoch + 1)
        } else {
            let rejection = answer.err().ok_or_else(|| Fault::new("an accepted Commit was lost"))?;
            if mine && let Some(mls) = self.groups.get_mut(&uri) {
                mls.clear_pending_commit(self.provider.storage())
                    .map_err(|error| Fault::new(format!("could not withdraw a Commit: {error}")))?;
            }
            fields["code"] = rejection.code.name().into();
            self.record("commit_refused", fields);
            match rejection.code {
                ErrorCode::WrongEpoch if rejection.as_wrong_epoch().is_some_and(|detail| detail.current_epoch > epoch) => {
                    self.make_stale(request);
                    CommitOutcome::Lost { epoch }
                }
                ErrorCode::PendingProposals => {
                    self.make_stale(request);
                    self.keep_proposals(&uri, &pending(&rejection));
                    CommitOutcome::Proposals
                }
                _ => {
                    self.take_outgoing(request);
                    CommitOutcome::Refused(rejection)
                }
            }
        };
        self.drain_backlog(&uri, None)?;
        self.save()?;
        Ok(outcome)
    }

    /// Proposes new keys for the own leaf; also the leaf's index.
    pub(super) fn make_proposal(&mut self, group: &GroupUri) -> Result<(u32, mls::NewProposal)> {
        let index = self.member_of(group)?.own_leaf_index().u32();
        let mls = self.groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        let made = mls::propose_update(&self.provider, &self.leaf, mls)?;
        self.save()?;
        Ok((index, made))
    }

    /// Forgets a proposal of ours that the hub refused.
    pub(super) fn take_back_proposal(&mut self, group: &GroupUri, reference: &mls::ProposalRef) -> Result<()> {
        if let Some(mls) = self.groups.get_mut(group) {
            // A Commit may have done so.
            let _ = mls.remove_pending_proposal(self.provider.storage(), reference);
        }
        self.save()
    }

    // --- messages ----------------------------------------------------------------------------------------------------

    /// Encrypts `text` and makes the request that sends it, in the place of the stale one that it replaces.
    pub(super) fn make_message(&mut self, group: &GroupUri, text: String, replaces: Option<RequestId>) -> Result<Outgoing> {
        if self.is_going(group) {
            return Err(ClientError::Invalid(format!("the hub is about to remove this client from {group}")));
        }
        self.member_of(group)?;
        let mls = self.groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        let (epoch, leaf_index) = (mls.epoch().as_u64(), mls.own_leaf_index().u32());
        let message = mls::encrypt(&self.provider, &self.leaf, mls, text.as_bytes())?;
        let (hash, text_hash) = (sha256(&message), sha256(text.as_bytes()));
        let request = DsRequest::SendMessage(SendMessage { group_id: group.to_bytes().into(), message: message.into() });
        let service = ds(DsSenderId::LeafIndex(leaf_index), request);
        let purpose = Purpose::Message { group: group.to_string(), epoch, hash, text };
        let outgoing = self.enqueue(group.hub(), &service, purpose, replaces);
        let fields = json!({
            "group": group.to_string(), "request": outgoing.request.to_string(), "message": hex(&hash), "epoch": epoch,
            "text_hash": hex(&text_hash),
        });
        self.record("sending", fields);
        self.save()?;
        Ok(outgoing)
    }

    /// Takes in the answer to a message.
    pub(super) fn settle_message(&mut self, request: RequestId, answer: Answer) -> Result<MessageOutcome> {
        let found = self.state.outbox.iter().find(|outgoing| outgoing.request == request).cloned();
        let Some(Outgoing { purpose: Purpose::Message { group, epoch, hash, text }, made_at_ms, stale: false, .. }) = found
        else {
            return Err(ClientError::Invalid("the message was settled by another operation".into()));
        };
        let uri: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        let mut fields = json!({ "group": group, "request": request.to_string(), "message": hex(&hash), "epoch": epoch });
        let outcome = match answer {
            Ok(Reply::MessageAccepted(accepted)) => {
                // The hub's epoch: it accepts messages of the last few.
                fields["epoch"] = accepted.epoch.into();
                self.record("accepted", fields);
                let me = self.me.clone();
                self.remember(None, accepted.accepted_at_ms, &uri, &me, &text);
                MessageOutcome::Accepted(accepted)
            }
            Ok(_) => MessageOutcome::Refused(Rejection::new(ErrorCode::Malformed)),
            Err(rejection) => {
                fields["code"] = rejection.code.name().into();
                self.record("refused", fields);
                match rejection.code {
                    // A second copy would be worse than one of which nothing is known.
                    ErrorCode::WrongEpoch | ErrorCode::PendingProposals if self.outlived_answers(made_at_ms) => {
                        MessageOutcome::Unknown
                    }
                    ErrorCode::WrongEpoch => MessageOutcome::Outdated,
                    ErrorCode::PendingProposals => {
                        self.keep_proposals(&uri, &pending(&rejection));
                        MessageOutcome::Proposals
                    }
                    _ => MessageOutcome::Refused(rejection),
                }
            }
        };
        if matches!(outcome, MessageOutcome::Outdated | MessageOutcome::Proposals) {
            self.make_stale(request);
        } else {
            self.take_outgoing(request);
        }
        self.save()?;
        Ok(outcome)
    }
}

fn has_path(staged: &StagedCommit) -> bool {
    staged.update_path_leaf_node().is_some()
}

/// `welcome_info` by the KeyPackage that a Welcome is for.
pub(super) fn welcome_info(group: &GroupUri, reference: &KeyPackageRef, epoch: u64) -> Service {
    let request = DsRequest::WelcomeInfo(WelcomeInfo { group_id: group.to_bytes().into(), epoch });
    ds(DsSenderId::KeyPackageRef(reference.as_slice().into()), request)
}

//! External Commits: joining a group by oneself (S9, X6, R4), and replacing one's own leaf when the group cannot be followed any
//! more (X4).
//!
//! OpenMLS counts an external Commit as accepted as soon as it is made. So it is made in a storage of its own, which is kept with
//! the request in the outbox; only the hub's receipt lets it take the place of what is there.

use std::collections::HashMap;

use openmls::group::{GroupId, MlsGroup};
use openmls::prelude::{LeafNodeIndex, LeafNodeParameters, MlsMessageBodyIn, RatchetTreeIn};
use openmls_traits::OpenMlsProvider as _;
use serde_json::json;
use tls_codec::{Deserialize as _, DeserializeBytes as _};

use super::core::{Core, Result};
use super::error::ClientError;
use super::event::Event;
use super::mls::{self, Leaf, LeafClaim, NewCommit, Provider, failed};
use super::outgoing::Answer;
use super::state::{Blob, GroupStatus, JoinHow, Outgoing, Purpose, Values};
use crate::base::bytes::hex;
use crate::base::crypto::{SigningKey, sha256};
use crate::base::ids::RequestId;
use crate::base::limits::AS_ROOTS_RETRY;
use crate::base::{ClientUri, Domain, Fault, GroupUri};
use crate::identity::revoked::key_hash;
use crate::wire::ds::{DsMessage, DsRequest, DsSenderId, GroupJoin, GroupUpdate};
use crate::wire::error::ErrorCode;
use crate::wire::qs::QueueBinding;
use crate::wire::reply::GroupState;
use crate::wire::request::Service;
use crate::wire::{Opaque, Rejection, Reply};

/// The proposal types (RFC 9420 §17.4) that an external Commit of ours has.
const PROPOSAL_REMOVE: u16 = 3;
const PROPOSAL_EXTERNAL_INIT: u16 = 6;

/// An external Commit that was made and not sent.
struct NewJoin {
    made: NewCommit,
    /// The epoch that it ends.
    epoch: u64,
    /// This client's leaf in that epoch, which it replaces.
    replaces: Option<LeafNodeIndex>,
    /// The group as it will be.
    mls: MlsGroup,
    /// What OpenMLS keeps of it.
    values: Values,
}

/// What came of trying to make an external Commit.
#[derive(Debug)]
pub(super) enum MadeJoin {
    /// It is in the outbox.
    Made(Box<Outgoing>),
    /// A member's domain has to be known first.
    Needs(Domain),
    /// This client has no leaf to replace, and may not come by another right.
    NoMember,
}

/// What came of an external Commit.
#[derive(Debug)]
pub(super) enum JoinOutcome {
    /// It began this epoch.
    Won(u64),
    /// Another Commit was accepted; ours waits in the outbox to be made anew.
    Lost,
    /// Refused for good.
    Refused(Rejection),
}

/// Makes the external Commit with which `leaf` enters `group`.
fn external_commit(leaf: &Leaf, group: &GroupUri, state: &GroupState) -> std::result::Result<NewJoin, String> {
    let MlsMessageBodyIn::GroupInfo(info) = mls::read_message(&state.group_info)? else {
        return Err("the hub sent no GroupInfo".into());
    };
    if info.group_id().as_slice() != group.to_bytes() || info.epoch().as_u64() != state.epoch {
        return Err("the hub sent the GroupInfo of another group or epoch".into());
    }
    let tree = RatchetTreeIn::tls_deserialize_exact(&*state.ratchet_tree).map_err(|_| "malformed ratchet tree".to_owned())?;
    let scratch = Provider::default();
    let parameters = LeafNodeParameters::builder().with_capabilities(mls::capabilities()).build();
    let built = MlsGroup::external_commit_builder()
        .with_ratchet_tree(tree)
        .with_config(mls::join_config())
        // As for a Welcome: an expired leaf is the hub's to remove.
        .skip_lifetime_validation()
        .build_group(&scratch, info, leaf.credential())
        .map_err(|error| error.to_string())?
        .leaf_node_parameters(parameters)
        .load_psks(scratch.storage())
        .map_err(|error| error.to_string())?
        .use_ratchet_tree_extension(false)
        .create_group_info(true)
        .build(scratch.rand(), scratch.crypto(), &leaf.signer(), |_| true)
        .map_err(|error| error.to_string())?
        .finalize(&scratch)
        .map_err(|error| error.to_string())?;
    let (mut mls, bundle) = built;
    mls::write_message_secrets(&scratch, std::iter::once(&mut mls)).map_err(|fault| fault.to_string())?;
    let made = NewCommit::new(bundle).map_err(|fault| fault.to_string())?;
    let replaces = replaced_leaf(&made.commit).ok_or("the own external Commit cannot be read")?;
    Ok(NewJoin { epoch: state.epoch, replaces, values: scratch.values(Clone::clone), mls, made })
}

/// The leaf that an external Commit (MLSMessage) of ours removes, if any: OpenMLS does not tell. `None` when it is malformed.
fn replaced_leaf(commit: &[u8]) -> Option<Option<LeafNodeIndex>> {
    // MLSMessage and PublicMessage (RFC 9420 §6): version, wire format, group id, epoch, sender, authenticated data, content type.
    let (_, rest) = u32::tls_deserialize_bytes(commit).ok()?;
    let (_, rest) = Opaque::tls_deserialize_bytes(rest).ok()?;
    let (_, rest) = u64::tls_deserialize_bytes(rest).ok()?;
    let (_, rest) = u8::tls_deserialize_bytes(rest).ok()?;
    let (_, rest) = Opaque::tls_deserialize_bytes(rest).ok()?;
    let (_, rest) = u8::tls_deserialize_bytes(rest).ok()?;
    let (proposals, _) = Opaque::tls_deserialize_bytes(rest).ok()?;
    let mut rest: &[u8] = &proposals;
    while !rest.is_empty() {
        let (_by_value, after) = u8::tls_deserialize_bytes(rest).ok()?;
        let (kind, after) = u16::tls_deserialize_bytes(after).ok()?;
        rest = match kind {
            PROPOSAL_EXTERNAL_INIT => Opaque::tls_deserialize_bytes(after).ok()?.1,
            PROPOSAL_REMOVE => return Some(Some(LeafNodeIndex::new(u32::tls_deserialize_bytes(after).ok()?.0))),
            _ => return None,
        };
    }
    Some(None)
}

impl Core {
    /// The name that a request by the user key carries, and the user's certificate.
    pub(super) fn as_user(&self) -> Result<(DsSenderId, Vec<u8>)> {
        let key = SigningKey::from_pkcs8(&self.state.account.user_key.0)?;
        let hash = key_hash(key.public());
        Ok((DsSenderId::UserKeyHash(hash.as_slice().into()), self.state.account.user_certificate.0.clone()))
    }

    /// A DS request by the user key.
    pub(super) fn user_request(&self, request: DsRequest) -> Result<Service> {
        let (sender_id, certificate) = self.as_user()?;
        Ok(Service::Ds(DsMessage { sender_id, certificates: vec![Opaque::from(certificate)].into(), request }))
    }

    /// The external Commit of `group` in the outbox.
    pub(super) fn pending_join(&self, group: &GroupUri) -> Option<Outgoing> {
        let name = group.to_string();
        let of_group = |outgoing: &&Outgoing| matches!(&outgoing.purpose, Purpose::Join { group, .. } if *group == name);
        self.state.outbox.iter().find(of_group).cloned()
    }

    /// Whether an entry of `epoch` has to wait until it is known whether an external Commit of ours was accepted.
    pub(super) fn waits_for_join(&self, group: &GroupUri, epoch: u64) -> bool {
        self.pending_join(group)
            .is_some_and(|join| !join.stale && matches!(join.purpose, Purpose::Join { epoch: ended, .. } if epoch > ended))
    }

    /// Makes an external Commit on the group's `state`, and the request that carries it, in the place of the stale one that it
    /// replaces. Its right is what fits: this client's leaf is there, else its user's, else the group is open; `only_resync`
    /// admits the first alone.
    pub(super) fn make_join(
        &mut self,
        group: &GroupUri,
        state: &GroupState,
        only_resync: bool,
        replaces: Option<RequestId>,
    ) -> Result<MadeJoin> {
        if self.pending_join(group).is_some_and(|kept| Some(kept.request) != replaces) {
            return Err(ClientError::Invalid(format!("{group} is being joined already")));
        }
        let Some(hub) = self.domain_info(group.hub()) else { return Ok(MadeJoin::Needs(group.hub().clone())) };
        let not_trusted = |why: String| ClientError::Untrusted(format!("{group}: {why}"));
        let new = external_commit(&self.leaf, group, state).map_err(not_trusted)?;
        if !mls::external_senders(new.mls.extensions()).iter().any(|sender| **sender == *hub.external_sender) {
            return Err(not_trusted("the hub's Delivery Service is not among the external senders".into()));
        }
        let others = match self.check_others(&new.mls)? {
            Ok(others) => others,
            Err(domain) => return Ok(MadeJoin::Needs(domain)),
        };
        let how = match new.replaces {
            Some(_) => JoinHow::Resync,
            None if only_resync => return Ok(MadeJoin::NoMember),
            None if others.iter().any(|client| client.user() == self.me.user()) => JoinHow::Client,
            None => JoinHow::Open,
        };
        let client_queue_config = self.queue_config(QueueBinding::Hub(group.hub().as_bytes().into()))?;
        let hash = sha256(&new.made.commit);
        let group_update = GroupUpdate { commit: new.made.commit.into(), group_info: new.made.group_info.into() };
        let body = GroupJoin { group_id: group.to_bytes().into(), group_update, client_queue_config };
        let service = match (how, new.replaces) {
            (JoinHow::Resync, Some(index)) => {
                super::outgoing::ds(DsSenderId::LeafIndex(index.u32()), DsRequest::ResyncClient(body))
            }
            (JoinHow::Client, _) => self.user_request(DsRequest::JoinClient(body))?,
            _ => self.user_request(DsRequest::JoinGroup(body))?,
        };
        let values = new.values.into_iter().map(|(key, value)| (Blob(key), Blob(value))).collect();
        let purpose = Purpose::Join { group: group.to_string(), epoch: new.epoch, hash, how, values };
        let outgoing = self.enqueue(group.hub(), &service, purpose, replaces);
        let fields = json!({
            "group": group.to_string(), "request": outgoing.request.to_string(), "commit": hex(&hash), "epoch": new.epoch,
        });
        self.record("committing", fields);
        self.save()?;
        Ok(MadeJoin::Made(Box::new(outgoing)))
    }

    /// Checks the credential of every other member (R8) and says who they are, or which domain has to be known first.
    fn check_others(&mut self, mls: &MlsGroup) -> Result<std::result::Result<Vec<ClientUri>, Domain>> {
        let (own, now) = (mls.own_leaf_index(), self.now());
        let mut others = Vec::new();
        for (_, leaf) in mls.treesync().full_leaves().filter(|(index, _)| *index != own) {
            let claim = LeafClaim::of_leaf(leaf).map_err(ClientError::Untrusted)?;
            let domain = claim.domain().map_err(ClientError::Untrusted)?;
            let asked = now.minus(AS_ROOTS_RETRY);
            let Some(roots) = self.roots_for(&domain, &claim.chain, asked) else { return Ok(Err(domain)) };
            others.push(claim.check_existing(&roots, now).map_err(ClientError::Untrusted)?);
        }
        Ok(Ok(others))
    }

    /// Takes in the answer to an external Commit: the group as it makes it takes the place of what is there, or it is withdrawn.
    pub(super) fn settle_join(&mut self, request: RequestId, answer: Answer) -> Result<JoinOutcome> {
        let found = self.state.outbox.iter().find(|outgoing| outgoing.request == request).cloned();
        let Some(Outgoing { purpose: Purpose::Join { group, epoch, hash, how, values }, stale: false, .. }) = found else {
            return Err(ClientError::Invalid("the external Commit was settled by another operation".into()));
        };
        let uri: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        let values: Values = values.into_iter().map(|(key, value)| (key.0, value.0)).collect();
        let mut fields = json!({ "group": group, "request": request.to_string(), "commit": hex(&hash), "epoch": epoch + 1 });
        let won = match &answer {
            Ok(Reply::CommitAccepted(receipt)) => {
                let joined = load(&Provider::with_values(values.clone()), &uri)?;
                if !receipt_is_of(&joined, &uri, epoch + 1, &hash, receipt) {
                    return Err(ClientError::Untrusted(format!("{group}: the hub's receipt is not its own")));
                }
                true
            }
            Ok(_) => return Err(ClientError::Untrusted(format!("{group}: the hub accepted a Commit without a receipt"))),
            Err(rejection) => rejection.as_wrong_epoch().is_some_and(|detail| detail.accepted_commit_hash == Some(hash)),
        };
        let outcome = if won {
            self.take_outgoing(request);
            self.record("commit_accepted", fields);
            self.replace_group(&uri, values, how == JoinHow::Resync)?;
            JoinOutcome::Won(epoch + 1)
        } else {
            let rejection = answer.err().ok_or_else(|| Fault::new("an accepted Commit was lost"))?;
            fields["code"] = rejection.code.name().into();
            self.record("commit_refused", fields);
            match rejection.code {
                ErrorCode::WrongEpoch => {
                    self.make_stale(request);
                    JoinOutcome::Lost
                }
                _ => {
                    self.take_outgoing(request);
                    JoinOutcome::Refused(rejection)
                }
            }
        };
        self.drain_backlog(&uri, None)?;
        self.save()?;
        Ok(outcome)
    }

    /// Puts the group as an accepted external Commit made it in the place of what is there.
    fn replace_group(&mut self, group: &GroupUri, values: Values, resynced: bool) -> Result<()> {
        if let Some(mut old) = self.groups.remove(group) {
            old.delete(self.provider.storage()).map_err(failed("forget a group"))?;
        }
        self.provider.insert_values(values);
        let joined = load(&self.provider, group)?;
        self.groups.insert(group.clone(), joined);
        // A Commit on the old state can be made anew only.
        if let Some(commit) = self.pending_commit(group) {
            self.make_stale(commit.request);
        }
        let known = self.state.groups.get(&group.to_string()).is_some_and(|kept| is_known(kept.status));
        let generation = self.queue()?.generation;
        self.became_member(group, None, Some(generation));
        if resynced && known && matches!(self.new_events.last(), Some(Event::Joined { .. })) {
            self.new_events.pop();
            let epoch = self.groups.get(group).map_or(0, |mls| mls.epoch().as_u64());
            self.new_events.push(Event::Resynced { group: group.clone(), epoch });
        }
        Ok(())
    }

    /// Notes that `group` is lost for this client: the hub says that it is no member, or that there is no such group.
    pub(super) fn forget_group(&mut self, group: &GroupUri, status: GroupStatus) -> Result<()> {
        let epoch = self.groups.get(group).map(|mls| mls.epoch().as_u64());
        if let Some(mut mls) = self.groups.remove(group) {
            mls.delete(self.provider.storage()).map_err(failed("forget a group"))?;
        }
        match (self.group_mut(group), epoch) {
            // Never a member as far as this client knew: a marker named a group whose Welcome was lost, and there is none.
            (Some(kept), None) if kept.status == GroupStatus::Stuck && kept.name.is_none() => {
                self.state.groups.remove(&group.to_string());
            }
            (Some(kept), epoch) => {
                (kept.status, kept.lost) = (status, false);
                if let Some(epoch) = epoch {
                    self.record("left", json!({ "group": group.to_string(), "epoch": epoch }));
                    let group = group.clone();
                    self.new_events.push(match status {
                        GroupStatus::Deleted => Event::Deleted { group },
                        _ => Event::Left { group, epoch },
                    });
                }
            }
            (None, _) => {}
        }
        self.save()
    }
}

/// Whether this client has seen the group from inside.
fn is_known(status: GroupStatus) -> bool {
    matches!(status, GroupStatus::Member | GroupStatus::Stuck | GroupStatus::Leaving)
}

fn load(provider: &Provider, group: &GroupUri) -> Result<MlsGroup> {
    let loaded = MlsGroup::load(provider.storage(), &GroupId::from_slice(&group.to_bytes())).map_err(failed("load a group"))?;
    Ok(loaded.ok_or_else(|| Fault::new(format!("the state has lost the keys of {group}")))?)
}

/// As [`Core::receipt_is_good`], also for a group that is not taken up yet.
pub(super) fn receipt_is_of(
    mls: &MlsGroup,
    group: &GroupUri,
    epoch: u64,
    hash: &[u8; 32],
    receipt: &crate::wire::Receipt,
) -> bool {
    let content = &receipt.content;
    *content.group_id == *group.to_bytes()
        && content.epoch == epoch
        && content.commit_hash == *hash
        && mls::external_senders(mls.extensions())
            .iter()
            .filter_map(|sender| mls::external_sender_key(sender))
            .any(|key| receipt.is_signed_by(&key))
}

impl Provider {
    /// Adds to the storage what another one held.
    fn insert_values(&self, new: HashMap<Vec<u8>, Vec<u8>>) {
        let mut all = self.values(Clone::clone);
        all.extend(new);
        self.replace_values(all);
    }
}

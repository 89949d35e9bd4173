//! Commits made by hand, and requests signed by hand: for tests that race Commits or tamper with them.

use super::Client;
use super::core::Result;
use super::outbox::Question;
use super::outgoing::{CommitOutcome, ds};
use super::state::{Plan, Purpose};
use crate::base::bytes::hex;
use crate::base::ids::RequestId;
use crate::base::{Fault, GroupUri};
use crate::wire::ds::{DsRequest, DsSenderId, GroupCommit, GroupUpdate};
use crate::wire::error::ErrorCode;
use crate::wire::request::Service;
use crate::wire::{ClientRequest, Content, Response};

/// A Commit that was made and not sent: for tests that race Commits or tamper with them. Until
/// [`Client::resolve_commit`] its group can make no other.
#[derive(Clone, Debug)]
pub struct BuiltCommit {
    /// The group.
    pub group: GroupUri,
    /// The request id it is kept under.
    pub request: RequestId,
    /// The epoch it ends.
    pub epoch: u64,
    /// SHA-256 of the Commit's MLSMessage.
    pub commit_hash: [u8; 32],
    /// Commit and GroupInfo.
    pub update: GroupUpdate,
}

/// What came of a [`BuiltCommit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolvedCommit {
    /// It began this epoch.
    Accepted(u64),
    /// It was refused and is withdrawn.
    Refused(ErrorCode),
}

impl Client {
    /// Makes a Commit that renews this client's keys in the group, without sending it.
    pub async fn build_update_commit(&self, group: &GroupUri) -> Result<BuiltCommit> {
        let made = {
            let group = group.clone();
            // Nobody else may take it up: whether it is sent is the caller's business.
            self.make(move |core| core.make_commit(&group, Plan::Update, Vec::new(), None)).await?.keep()
        };
        let question = Question::kept(&made, true, &self.shared.leaf_key)?;
        match (made.purpose, question.service) {
            (Purpose::Commit { epoch, hash, .. }, Service::Ds(message)) => match message.request {
                DsRequest::UpdateClient(body) => Ok(BuiltCommit {
                    group: group.clone(),
                    request: made.request,
                    epoch,
                    commit_hash: hash,
                    update: body.group_update,
                }),
                _ => Err(Fault::new("an update Commit of another type").into()),
            },
            _ => Err(Fault::new("an update Commit of another kind").into()),
        }
    }

    /// The request that would carry `built`, possibly tampered with, signed now.
    pub async fn commit_request(&self, built: &BuiltCommit) -> Result<ClientRequest> {
        let request =
            DsRequest::UpdateClient(GroupCommit { group_id: built.group.to_bytes().into(), group_update: built.update.clone() });
        self.sign_as_member(&built.group, built.request, request).await
    }

    /// Tells the client what came of a [`BuiltCommit`]: it is applied if it was accepted, else withdrawn.
    pub async fn resolve_commit(&self, built: &BuiltCommit, response: Response) -> Result<ResolvedCommit> {
        let (request, answer) = (built.request, response.into_result());
        let code = answer.as_ref().err().map(|rejection| rejection.code);
        let settled = self.transact(move |core| {
            let outcome = core.settle_commit(request, answer)?;
            // Whether it is made anew is the caller's business, too.
            core.withdraw(request)?;
            Ok(outcome)
        });
        let outcome = settled.await;
        if outcome.is_ok() {
            self.shared.busy.release(request);
        }
        Ok(match outcome? {
            CommitOutcome::Won(epoch) => ResolvedCommit::Accepted(epoch),
            _ => ResolvedCommit::Refused(code.unwrap_or(ErrorCode::Malformed)),
        })
    }

    /// Any DS request about `group`, signed by this client's leaf in it.
    pub async fn sign_as_member(&self, group: &GroupUri, id: RequestId, request: DsRequest) -> Result<ClientRequest> {
        let index = self.leaf_index(group).await?;
        let content = Content::new(group.hub(), id, self.shared.now(), ds(DsSenderId::LeafIndex(index), request));
        Ok(content.sign(&self.shared.leaf_key))
    }

    /// The index of this client's leaf in the group.
    pub async fn leaf_index(&self, group: &GroupUri) -> Result<u32> {
        let group = group.clone();
        self.transact(move |core| Ok(core.member_of(&group)?.own_leaf_index().u32())).await
    }

    /// The epoch authenticator (RFC 9420 §8.7) of the group's present epoch, hexadecimal.
    pub async fn epoch_authenticator(&self, group: &GroupUri) -> Result<String> {
        let group = group.clone();
        self.transact(move |core| Ok(hex(core.member_of(&group)?.epoch_authenticator().as_slice()))).await
    }
}

//! What a user does with groups: create, add, remove, update, send.

use std::time::Duration;

use openmls::prelude::KeyPackage;
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use super::core::{Core, Result};
use super::error::ClientError;
use super::mls::{self, LeafClaim};
use super::outbox::{Held, Question};
use super::outgoing::{Answer, CommitOutcome, MessageOutcome, ds};
use super::state::{Group, Outgoing, Plan, Purpose};
use super::{Client, GroupSummary};
use crate::base::bytes::hex;
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Fault, GroupUri, UserUri};
use crate::wire::ds::{DsRequest, DsSenderId, GroupUpdate};
use crate::wire::error::ErrorCode;
use crate::wire::keys::{ClaimKeyPackages, KeysMessage, KeysRequest};
use crate::wire::request::Service;
use crate::wire::{ClientRequest, Content, Rejection, Reply, Response};

/// How often a Commit is made anew because another one came first, and a message because the group moved on.
const ATTEMPTS_MAX: u32 = 64;

/// A message that the hub has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// The request that carried it.
    pub request: RequestId,
    /// The epoch it was encrypted in.
    pub epoch: u64,
    /// SHA-256 of its MLSMessage.
    pub message_hash: [u8; 32],
    /// The hub's clock when it accepted it, in milliseconds since 1970.
    pub accepted_at_ms: u64,
}

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
    /// Creates a group on the own domain, with this client as its only member. `name` is for this client's eyes only.
    pub async fn create_group(&self, name: Option<&str>) -> Result<GroupUri> {
        let name = name.map(str::to_owned);
        let held = self.make(move |core| core.make_group(name)).await?;
        let Purpose::CreateGroup { group } = &held.outgoing.purpose else {
            return Err(Fault::new("a new group's request is of another kind").into());
        };
        let group = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        self.settle_other(held, self.deadline()).await?;
        Ok(group)
    }

    /// Adds all clients of `users`; those already there are passed over. Returns the group's epoch afterwards.
    pub async fn add_users(&self, group: &GroupUri, users: &[UserUri]) -> Result<u64> {
        self.run_commit(group, Plan::Add(users.iter().map(UserUri::to_string).collect()), self.deadline()).await
    }

    /// Removes all clients of `users`; those not there are passed over. Returns the group's epoch afterwards.
    pub async fn remove_users(&self, group: &GroupUri, users: &[UserUri]) -> Result<u64> {
        self.run_commit(group, Plan::Remove(users.iter().map(UserUri::to_string).collect()), self.deadline()).await
    }

    /// Renews this client's keys in the group and commits what is pending. Returns the group's epoch afterwards.
    pub async fn update(&self, group: &GroupUri) -> Result<u64> {
        self.run_commit(group, Plan::Update, self.deadline()).await
    }

    /// Sends `text` to the group. Returns once the hub has accepted it.
    ///
    /// On [`ClientError::NotConfirmed`] the message stays in the outbox and is sent, once, as soon as the hub can be reached.
    pub async fn send(&self, group: &GroupUri, text: &str) -> Result<SentMessage> {
        let deadline = self.deadline();
        for attempt in 0..ATTEMPTS_MAX {
            let proposals = {
                let group = group.clone();
                self.transact(move |core| core.member_of(&group).map(|_| core.has_proposals(&group))).await?
            };
            if proposals {
                self.run_commit(group, Plan::Update, deadline).await?;
            }
            let made = {
                let (group, text) = (group.clone(), text.to_owned());
                self.make(move |core| core.make_message(&group, text)).await?
            };
            if let Some(sent) = self.settle_message(made, deadline).await? {
                return Ok(sent);
            }
            self.pause(attempt).await;
        }
        Err(ClientError::NotReached("the group keeps changing".into()))
    }

    /// This client's groups.
    pub async fn groups(&self) -> Result<Vec<GroupSummary>> {
        self.transact(|core| {
            let summary = |(name, kept): (&String, &Group)| {
                let group: GroupUri = name.parse().map_err(|error| Fault::because("the state names no group", error))?;
                let epoch = core.groups.get(&group).map(|mls| mls.epoch().as_u64());
                let members = core.members_now(&group).len();
                Ok(GroupSummary { name: kept.name.clone(), status: kept.status, epoch, members, group })
            };
            core.state.groups.iter().map(summary).collect()
        })
        .await
    }

    /// The group's epoch and its members.
    pub async fn members(&self, group: &GroupUri) -> Result<(u64, Vec<ClientUri>)> {
        let group = group.clone();
        self.transact(move |core| Ok((core.member_of(&group)?.epoch().as_u64(), core.members_now(&group)))).await
    }

    // --- Commits -----------------------------------------------------------------------------------------------------

    /// Makes the Commit of `plan`, and makes it anew when another one comes first, until it is accepted or the deadline passes.
    pub(super) async fn run_commit(&self, group: &GroupUri, plan: Plan, deadline: Instant) -> Result<u64> {
        // One Commit of this client at a time in a group: it would only race itself.
        let lock = self.shared.group_lock(group);
        let _one = lock.lock().await;
        loop {
            // One left over from before comes first: OpenMLS holds it, and it may have been accepted.
            let left_over = {
                let group = group.clone();
                self.transact(move |core| Ok(core.pending_commit(&group))).await?
            };
            let Some(left_over) = left_over else {
                return self.commit_anew(group, &plan, deadline).await;
            };
            let same = matches!(&left_over.purpose, Purpose::Commit { plan: its, .. } if *its == plan);
            let Some(held) = self.shared.busy.take(left_over) else {
                if Instant::now() >= deadline {
                    return Err(ClientError::Invalid(format!("a Commit in {group} is being sent by another operation")));
                }
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            match self.settle_commit(held, deadline).await {
                Ok(CommitOutcome::Won(epoch)) if same => return Ok(epoch),
                Ok(CommitOutcome::Refused(rejection)) if same => return Err(rejection.into()),
                Ok(CommitOutcome::Lost { epoch }) => self.await_epoch(group, epoch, deadline).await?,
                Ok(CommitOutcome::Won(_) | CommitOutcome::Proposals | CommitOutcome::Refused(_)) => {}
                // Whoever had it before has settled it in the meantime.
                Err(ClientError::Invalid(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Client::run_commit`], without one left over. The group's lock is held.
    async fn commit_anew(&self, group: &GroupUri, plan: &Plan, deadline: Instant) -> Result<u64> {
        // Read first what was written in this epoch: the keys of past epochs are kept for a few Commits only, and a client that
        // commits without ever looking into its queue would be the one who throws them away.
        self.receive(deadline).await?;
        let mut claimed: Vec<(UserUri, KeyPackage)> = Vec::new();
        for attempt in 0..ATTEMPTS_MAX {
            let (left, epoch) = self.claim(group, plan, &mut claimed, deadline).await?;
            let Some(left) = left else { return Ok(epoch) };
            let key_packages = claimed.iter().filter(|(user, _)| left.adds(user)).map(|(_, package)| package.clone()).collect();
            let made = {
                let group = group.clone();
                self.make(move |core| core.make_commit(&group, left, key_packages)).await?
            };
            match self.settle_commit(made, deadline).await? {
                CommitOutcome::Won(epoch) => return Ok(epoch),
                CommitOutcome::Refused(rejection) => return Err(rejection.into()),
                CommitOutcome::Lost { epoch } => self.await_epoch(group, epoch, deadline).await?,
                CommitOutcome::Proposals => {}
            }
            if Instant::now() >= deadline {
                break;
            }
            self.pause(attempt).await;
        }
        Err(ClientError::NotReached("other members' Commits kept coming first".into()))
    }

    /// Narrows `plan` to what is still to be done, and claims the KeyPackages it lacks; `None` when nothing is. Also the epoch.
    async fn claim(
        &self,
        group: &GroupUri,
        plan: &Plan,
        claimed: &mut Vec<(UserUri, KeyPackage)>,
        deadline: Instant,
    ) -> Result<(Option<Plan>, u64)> {
        let (users, present) = match plan {
            Plan::Update => (&[][..], false),
            Plan::Add(users) => (users.as_slice(), false),
            Plan::Remove(users) => (users.as_slice(), true),
        };
        let users: Vec<UserUri> = users
            .iter()
            .map(|user| user.parse().map_err(|error| Fault::because("a plan names no user", error)))
            .collect::<std::result::Result<_, Fault>>()?;
        let (users, epoch, proposals) = {
            let group = group.clone();
            self.transact(move |core| {
                let epoch = core.member_of(&group)?.epoch().as_u64();
                Ok((core.users_in(&group, &users, present), epoch, core.has_proposals(&group)))
            })
            .await?
        };
        if users.is_empty() && *plan != Plan::Update {
            // Nothing to do, unless others' proposals wait: then this Commit would have carried them.
            return Ok((proposals.then_some(Plan::Update), epoch));
        }
        let names = users.iter().map(UserUri::to_string).collect();
        Ok(match plan {
            Plan::Update => (Some(Plan::Update), epoch),
            Plan::Remove(_) => (Some(Plan::Remove(names)), epoch),
            Plan::Add(_) => {
                for user in &users {
                    if !claimed.iter().any(|(owner, _)| owner == user) {
                        let packages = self.claim_of(user, deadline).await?;
                        claimed.extend(packages.into_iter().map(|package| (user.clone(), package)));
                    }
                }
                (Some(Plan::Add(names)), epoch)
            }
        })
    }

    /// One KeyPackage of each client of `user`, each proven to be that client's (R7, R8).
    async fn claim_of(&self, user: &UserUri, deadline: Instant) -> Result<Vec<KeyPackage>> {
        let domain = user.domain().clone();
        self.domain_info(&domain, deadline).await?;
        let request = KeysRequest::Claim(ClaimKeyPackages { user: user.to_bytes().into(), ciphersuite: mls::CIPHERSUITE_ID });
        let certificates = self.shared.leaf.chain.iter().map(|der| der.as_slice().into()).collect();
        let service = Service::Keys(KeysMessage { certificates, request });
        let reply = self.ask(&domain, service, deadline).await?;
        let Reply::KeyPackages(packages) = reply else {
            return Err(ClientError::Untrusted(format!("{domain} answered a claim with something else")));
        };
        let user = user.clone();
        self.transact(move |core| {
            let roots = core.roots(&domain).ok_or_else(|| Fault::new("a domain that was just pinned is gone"))?;
            let now = core.now();
            let mut checked = Vec::new();
            for claimed in packages {
                let not_trusted = |why: String| ClientError::Untrusted(format!("a KeyPackage of {user}: {why}"));
                let package = mls::read_key_package(&core.provider, &claimed.key_package).map_err(not_trusted)?;
                let claim = LeafClaim::of_leaf(package.leaf_node()).map_err(not_trusted)?;
                let client = claim.check(&roots, now).map_err(not_trusted)?;
                if client.user() != &user || client.to_bytes() != *claimed.client {
                    return Err(not_trusted(format!("it is {client}'s")));
                }
                checked.push(package);
            }
            if checked.is_empty() { Err(Rejection::new(ErrorCode::UnknownUser).into()) } else { Ok(checked) }
        })
        .await
    }

    /// Takes in what the queue has until `group` is past `epoch`: what the hub says is on its way here.
    async fn await_epoch(&self, group: &GroupUri, epoch: u64, deadline: Instant) -> Result<()> {
        let mut wait = Duration::from_millis(5);
        loop {
            let now = {
                let group = group.clone();
                self.transact(move |core| Ok(core.member_of(&group)?.epoch().as_u64())).await?
            };
            if now > epoch {
                return Ok(());
            }
            if self.receive_some(deadline).await?.is_some() {
                continue;
            }
            if Instant::now() + wait >= deadline {
                return Err(ClientError::NotReached(format!("the Commit that ended epoch {epoch} of {group} did not arrive")));
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(500));
        }
    }

    /// Makes room for the others in a race.
    async fn pause(&self, attempt: u32) {
        let most = 20 * u64::from(attempt.min(20)) + 5;
        let pause = Duration::from_millis(rand::rng().random_range(0..most));
        sleep(pause).await;
    }

    /// Has a request made and put into the outbox, and holds it: nobody else takes it up while the returned value lives.
    pub(super) async fn make(&self, work: impl FnOnce(&mut Core) -> Result<Outgoing> + Send + 'static) -> Result<Held> {
        let busy = self.shared.busy.clone();
        self.transact(move |core| {
            let made = work(core)?;
            busy.take(made).ok_or_else(|| Fault::new("a request id came twice").into())
        })
        .await
    }

    /// Sends a Commit of the outbox until it is answered, and takes in the answer.
    async fn settle_commit(&self, held: Held, deadline: Instant) -> Result<CommitOutcome> {
        let request = held.outgoing.request;
        let answer = self.ask_held(&held, deadline).await?;
        self.transact(move |core| core.settle_commit(request, answer)).await
    }

    /// As [`Client::settle_commit`] for a message; `None` when it is to be made anew.
    async fn settle_message(&self, held: Held, deadline: Instant) -> Result<Option<SentMessage>> {
        let Purpose::Message { group, epoch, hash, .. } = &held.outgoing.purpose else {
            return Err(Fault::new("a message that is none").into());
        };
        let group: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        let (request, epoch, message_hash) = (held.outgoing.request, *epoch, *hash);
        let answer = self.ask_held(&held, deadline).await?;
        let outcome = self.transact(move |core| core.settle_message(request, answer)).await?;
        drop(held);
        match outcome {
            MessageOutcome::Accepted(accepted) => {
                Ok(Some(SentMessage { request, epoch, message_hash, accepted_at_ms: accepted.accepted_at_ms }))
            }
            MessageOutcome::Refused(rejection) => Err(rejection.into()),
            MessageOutcome::Outdated => self.await_epoch(&group, epoch, deadline).await.map(|()| None),
            MessageOutcome::Proposals => Ok(None),
        }
    }

    pub(super) async fn settle_other(&self, held: Held, deadline: Instant) -> Result<()> {
        let request = held.outgoing.request;
        let answer = self.ask_held(&held, deadline).await?;
        self.transact(move |core| core.settle_other(request, answer)).await
    }

    /// Sends a request of the outbox until it is answered.
    async fn ask_held(&self, held: &Held, deadline: Instant) -> Result<Answer> {
        let question = Question::kept(&held.outgoing, &self.shared.leaf.key)?;
        self.shared.put(&question, deadline).await.map_err(|error| ClientError::NotConfirmed(error.0))
    }

    /// Sends what an earlier run, or an operation that gave up waiting, left in the outbox. What another operation is sending
    /// is left to it.
    pub async fn resume(&self) -> Result<()> {
        self.resume_by(self.deadline()).await
    }

    pub(super) async fn resume_by(&self, deadline: Instant) -> Result<()> {
        let left: Vec<Outgoing> = self.transact(|core| Ok(core.state.outbox.clone())).await?;
        for outgoing in left {
            let done = self.resume_one(outgoing, deadline).await;
            match done {
                // Refused for good: it was logged, and nobody waits for it any more.
                Ok(()) | Err(ClientError::Refused(_) | ClientError::Invalid(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn resume_one(&self, outgoing: Outgoing, deadline: Instant) -> Result<()> {
        let parse =
            |group: &String| group.parse::<GroupUri>().map_err(|error| Fault::because("the outbox names no group", error));
        let purpose = outgoing.purpose.clone();
        let Some(held) = self.shared.busy.take(outgoing) else { return Ok(()) };
        match &purpose {
            Purpose::KeyPackages | Purpose::CreateGroup { .. } => self.settle_other(held, deadline).await,
            Purpose::Commit { group, plan, .. } => {
                let group = parse(group)?;
                match self.settle_commit(held, deadline).await? {
                    CommitOutcome::Won(_) => Ok(()),
                    CommitOutcome::Refused(rejection) => Err(rejection.into()),
                    CommitOutcome::Lost { epoch } => {
                        self.await_epoch(&group, epoch, deadline).await?;
                        self.run_commit(&group, plan.clone(), deadline).await.map(drop)
                    }
                    CommitOutcome::Proposals => self.run_commit(&group, plan.clone(), deadline).await.map(drop),
                }
            }
            Purpose::Message { group, text, .. } => match self.settle_message(held, deadline).await? {
                None => self.send(&parse(group)?, text).await.map(drop),
                Some(_) => Ok(()),
            },
        }
    }

    // --- for tests -----------------------------------------------------------------------------------------------------

    /// Makes a Commit that renews this client's keys in the group, without sending it.
    pub async fn build_update_commit(&self, group: &GroupUri) -> Result<BuiltCommit> {
        let made = {
            let group = group.clone();
            // Nobody else may take it up: whether it is sent is the caller's business.
            self.make(move |core| core.make_commit(&group, Plan::Update, Vec::new())).await?.keep()
        };
        let question = Question::kept(&made, &self.shared.leaf.key)?;
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
        let request = DsRequest::UpdateClient(crate::wire::ds::GroupCommit {
            group_id: built.group.to_bytes().into(),
            group_update: built.update.clone(),
        });
        self.sign_as_member(&built.group, built.request, request).await
    }

    /// Tells the client what came of a [`BuiltCommit`]: it is applied if it was accepted, else withdrawn.
    pub async fn resolve_commit(&self, built: &BuiltCommit, response: Response) -> Result<ResolvedCommit> {
        let (request, answer) = (built.request, response.into_result());
        let code = answer.as_ref().err().map(|rejection| rejection.code);
        let outcome = self.transact(move |core| core.settle_commit(request, answer)).await;
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
        Ok(content.sign(&self.shared.leaf.key))
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

impl Plan {
    fn adds(&self, user: &UserUri) -> bool {
        matches!(self, Self::Add(users) if users.contains(&user.to_string()))
    }
}

//! What a user does with groups: create, add, remove, update, send.

use std::time::Duration;

use openmls::prelude::KeyPackage;
use rand::Rng as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::core::{Core, Result};
use super::error::ClientError;
use super::mls::{self, LeafClaim};
use super::outbox::{Held, Question};
use super::outgoing::{Answer, CommitOutcome, MessageOutcome};
use super::state::{Group, Outgoing, Plan, Purpose};
use super::{Client, GroupSummary};
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Fault, GroupUri, UserUri, limits};
use crate::wire::error::ErrorCode;
use crate::wire::keys::{ClaimKeyPackages, KeysMessage, KeysRequest};
use crate::wire::request::Service;
use crate::wire::{Rejection, Reply};

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

impl Client {
    /// Creates a group on the own domain, with this client and, as far as they can be had now, its user's other devices.
    /// `name` is for this client's eyes only.
    pub async fn create_group(&self, name: Option<&str>) -> Result<GroupUri> {
        let name = name.map(str::to_owned);
        let held = self.make(move |core| core.make_group(name)).await?;
        let Purpose::CreateGroup { group } = &held.outgoing.purpose else {
            return Err(Fault::new("a new group's request is of another kind").into());
        };
        let group = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        self.settle_other(held, self.deadline()).await?;
        let me = self.uri();
        if self.devices().await?.iter().any(|device| &device.client != me)
            && let Err(error) = self.add_clients(&group, std::slice::from_ref(me.user())).await
        {
            // They can join by themselves.
            tracing::warn!(%group, %error, "the user's other devices are not in a new group yet");
        }
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
    /// On [`ClientError::NotConfirmed`] the message stays in the outbox and is sent, once, as soon as the hub can be reached:
    /// before any later one of this group.
    pub async fn send(&self, group: &GroupUri, text: &str) -> Result<SentMessage> {
        let deadline = self.deadline();
        self.unstick(group, deadline).await?;
        match self.settle_older(group, deadline).await {
            Ok(()) => self.send_on(group, text, None, deadline).await,
            // It takes its place behind them.
            Err(ClientError::NotConfirmed(why) | ClientError::NotReached(why)) => {
                let (group, text) = (group.clone(), text.to_owned());
                self.make(move |core| core.make_message(&group, text, None)).await?;
                Err(ClientError::NotConfirmed(why))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what is left in the outbox of earlier messages to `group`: those that are overtaken by too many cannot be read any
    /// more. What another operation is sending is left to it.
    async fn settle_older(&self, group: &GroupUri, deadline: Instant) -> Result<()> {
        let older = {
            let group = group.clone();
            self.transact(move |core| core.member_of(&group).map(|_| core.messages_out(&group))).await?
        };
        for outgoing in older {
            match self.resume_one(outgoing.request, deadline).await {
                Err(error) if !is_settled(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Encrypts and sends `text`, anew when the group moved on meanwhile. `kept` is its stale predecessor in the outbox.
    pub(super) async fn send_on(
        &self,
        group: &GroupUri,
        text: &str,
        mut kept: Option<Held>,
        deadline: Instant,
    ) -> Result<SentMessage> {
        for attempt in 0..limits::CLIENT_ATTEMPTS_MAX {
            let made = match self.make_message(group, text, kept.as_ref(), deadline).await {
                Ok(made) => made,
                Err(error) => return Err(self.give_up(kept, error).await),
            };
            match self.settle_message(made, deadline).await? {
                Settled::Sent(sent) => return Ok(sent),
                Settled::Stale(stale) => kept = Some(stale),
            }
            self.pause(attempt).await;
        }
        Err(self.give_up(kept, ClientError::NotReached("the group keeps changing".into())).await)
    }

    async fn make_message(&self, group: &GroupUri, text: &str, kept: Option<&Held>, deadline: Instant) -> Result<Held> {
        let proposals = {
            let group = group.clone();
            self.transact(move |core| core.member_of(&group).map(|_| core.has_proposals(&group))).await?
        };
        if proposals {
            // The hub takes no message before they are committed (S13).
            self.run_commit(group, Plan::Cover, deadline).await?;
        }
        let (group, text, replaces) = (group.clone(), text.to_owned(), kept.map(|kept| kept.outgoing.request));
        self.make(move |core| core.make_message(&group, text, replaces)).await
    }

    /// What to say of `error` while `kept` waits in the outbox to be made anew: it stays there, unless it never can be.
    pub(super) async fn give_up(&self, kept: Option<Held>, error: ClientError) -> ClientError {
        let Some(kept) = kept else { return error };
        let is_commit = matches!(kept.outgoing.purpose, Purpose::Commit { .. } | Purpose::Join { .. });
        match error {
            ClientError::Refused(rejection) if !is_commit || rejection.code == ErrorCode::UnreachableDomain => {
                ClientError::NotConfirmed(rejection.to_string())
            }
            ClientError::NotReached(why) => ClientError::NotConfirmed(why),
            ClientError::Refused(_) | ClientError::Invalid(_) => {
                let request = kept.outgoing.request;
                tracing::warn!(%request, %error, "a request that was to be made anew is given up");
                match self.transact(move |core| core.withdraw(request)).await {
                    Ok(()) => error,
                    Err(failed) => failed,
                }
            }
            error => error,
        }
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

    /// Names a group anew, for this client's eyes only; `None` takes its name away.
    pub async fn name_group(&self, group: &GroupUri, name: Option<&str>) -> Result<()> {
        let (group, name) = (group.to_string(), name.map(str::to_owned));
        self.transact(move |core| {
            let Some(kept) = core.state.groups.get_mut(&group) else {
                return Err(ClientError::Invalid(format!("not a member of {group}")));
            };
            kept.name = name;
            core.save()
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
        self.unstick(group, deadline).await?;
        // One Commit of this client at a time in a group: it would only race itself.
        let lock = self.shared.group_lock(group);
        let Ok(_one) = timeout_at(deadline, lock.lock()).await else {
            return Err(ClientError::NotReached(format!("a Commit in {group} is being sent by another operation")));
        };
        loop {
            // One left over from before comes first: OpenMLS holds it, and it may have been accepted.
            let (left_over, held) = {
                let (group, busy) = (group.clone(), self.shared.busy.clone());
                self.transact(move |core| {
                    let left_over = core.pending_commit(&group);
                    Ok((left_over.is_some(), left_over.and_then(|left_over| busy.take(left_over))))
                })
                .await?
            };
            if !left_over {
                return self.commit_anew(group, &plan, None, deadline).await;
            }
            let Some(held) = held else {
                if Instant::now() >= deadline {
                    return Err(ClientError::NotReached(format!("a Commit in {group} is being sent by another operation")));
                }
                sleep(limits::CLIENT_COMMIT_BUSY_INTERVAL).await;
                continue;
            };
            let same = matches!(&held.outgoing.purpose, Purpose::Commit { plan: its, .. } if *its == plan);
            match self.settle_left_over(group, held, deadline).await {
                done if same => return done,
                Err(error) if !is_settled(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Finishes a Commit of the outbox: has it answered, or made anew. The group's lock is held.
    pub(super) async fn settle_left_over(&self, group: &GroupUri, held: Held, deadline: Instant) -> Result<u64> {
        let Purpose::Commit { plan, .. } = held.outgoing.purpose.clone() else {
            return Err(Fault::new("a Commit that is none").into());
        };
        if !held.outgoing.stale {
            match self.settle_commit(&held, deadline).await? {
                CommitOutcome::Won(epoch) => return Ok(epoch),
                CommitOutcome::Refused(rejection) => return Err(rejection.into()),
                CommitOutcome::Lost { epoch } => {
                    if let Err(error) = self.await_epoch(group, epoch, deadline).await {
                        return Err(self.give_up(Some(held), error).await);
                    }
                }
                CommitOutcome::Proposals => {}
            }
        }
        self.commit_anew(group, &plan, Some(held), deadline).await
    }

    /// As [`Client::run_commit`], without an unanswered one. `kept` is its stale predecessor in the outbox. The group's lock is
    /// held.
    async fn commit_anew(&self, group: &GroupUri, plan: &Plan, mut kept: Option<Held>, deadline: Instant) -> Result<u64> {
        match self.commit_until_won(group, plan, &mut kept, deadline).await {
            Ok(epoch) => {
                if let Some(kept) = kept {
                    // Nothing was left to do.
                    let request = kept.outgoing.request;
                    self.transact(move |core| core.withdraw(request)).await?;
                }
                Ok(epoch)
            }
            Err(error) => Err(self.give_up(kept, error).await),
        }
    }

    async fn commit_until_won(&self, group: &GroupUri, plan: &Plan, kept: &mut Option<Held>, deadline: Instant) -> Result<u64> {
        // Read first what was written in this epoch: the keys of past epochs are kept for a few Commits only, and a client that
        // commits without ever looking into its queue would be the one who throws them away.
        self.receive(deadline).await?;
        let mut claimed: Vec<(UserUri, KeyPackage)> = Vec::new();
        for attempt in 0..limits::CLIENT_ATTEMPTS_MAX {
            let (left, epoch) = self.claim(group, plan, &mut claimed, deadline).await?;
            let Some(left) = left else { return Ok(epoch) };
            let of_plan = claimed.iter().filter(|(user, _)| left.adds(user));
            let key_packages: Vec<KeyPackage> = of_plan.map(|(_, package)| package.clone()).collect();
            let made = {
                let (group, replaces) = (group.clone(), kept.as_ref().map(|kept| kept.outgoing.request));
                self.make_if(move |core| match core.missing_of(&group, &left, key_packages)? {
                    Some((left, key_packages)) => core.make_commit(&group, left, key_packages, replaces).map(Some),
                    None => Ok(None),
                })
                .await?
            };
            let Some(made) = made else { return Ok(epoch) };
            *kept = None;
            match self.settle_commit(&made, deadline).await? {
                CommitOutcome::Won(epoch) => return Ok(epoch),
                CommitOutcome::Refused(rejection) => return Err(rejection.into()),
                CommitOutcome::Lost { epoch } => {
                    *kept = Some(made);
                    self.await_epoch(group, epoch, deadline).await?;
                }
                CommitOutcome::Proposals => *kept = Some(made),
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
        let (left, epoch) = {
            let (group, plan) = (group.clone(), plan.clone());
            self.transact(move |core| {
                let epoch = core.member_of(&group)?.epoch().as_u64();
                Ok((core.left_of(&group, &plan)?, epoch))
            })
            .await?
        };
        if let Some(Plan::Add(users) | Plan::AddClients(users)) = &left {
            for user in users {
                let user: UserUri = user.parse().map_err(|error| Fault::because("a plan names no user", error))?;
                if !claimed.iter().any(|(owner, _)| *owner == user) {
                    let packages = self.claim_of(&user, deadline).await?;
                    claimed.extend(packages.into_iter().map(|package| (user.clone(), package)));
                }
            }
        }
        Ok((left, epoch))
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
        let mut wait = limits::CLIENT_EPOCH_WAIT_FIRST;
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
            wait = (wait * 2).min(limits::CLIENT_EPOCH_WAIT_MAX);
        }
    }

    /// Makes room for the others in a race.
    pub(super) async fn pause(&self, attempt: u32) {
        let most = 20 * u64::from(attempt.min(20)) + 5;
        let pause = Duration::from_millis(rand::rng().random_range(0..most));
        sleep(pause).await;
    }

    /// Has a request made and put into the outbox, and holds it: nobody else takes it up while the returned value lives.
    pub(super) async fn make(&self, work: impl FnOnce(&mut Core) -> Result<Outgoing> + Send + 'static) -> Result<Held> {
        let busy = self.shared.busy.clone();
        self.transact(move |core| {
            let made = work(core)?;
            busy.take_new(made).ok_or_else(|| Fault::new("a request id came twice").into())
        })
        .await
    }

    /// As [`Client::make`], for what may turn out not to be needed.
    pub(super) async fn make_if(
        &self,
        work: impl FnOnce(&mut Core) -> Result<Option<Outgoing>> + Send + 'static,
    ) -> Result<Option<Held>> {
        let busy = self.shared.busy.clone();
        self.transact(move |core| {
            let Some(made) = work(core)? else { return Ok(None) };
            busy.take_new(made).map(Some).ok_or_else(|| Fault::new("a request id came twice").into())
        })
        .await
    }

    /// Sends a Commit of the outbox until it is answered, and takes in the answer.
    pub(super) async fn settle_commit(&self, held: &Held, deadline: Instant) -> Result<CommitOutcome> {
        let request = held.outgoing.request;
        let answer = self.ask_held(held, deadline).await?;
        self.transact(move |core| core.settle_commit(request, answer)).await
    }

    /// As [`Client::settle_commit`] for a message.
    pub(super) async fn settle_message(&self, held: Held, deadline: Instant) -> Result<Settled> {
        let Purpose::Message { group, epoch, hash, .. } = &held.outgoing.purpose else {
            return Err(Fault::new("a message that is none").into());
        };
        let group: GroupUri = group.parse().map_err(|error| Fault::because("the outbox names no group", error))?;
        let (request, epoch, message_hash) = (held.outgoing.request, *epoch, *hash);
        let answer = self.ask_held(&held, deadline).await?;
        match self.transact(move |core| core.settle_message(request, answer)).await? {
            MessageOutcome::Accepted(accepted) => {
                Ok(Settled::Sent(SentMessage { request, epoch, message_hash, accepted_at_ms: accepted.accepted_at_ms }))
            }
            MessageOutcome::Refused(rejection) => Err(rejection.into()),
            MessageOutcome::Unknown => {
                let why = format!("a message to {group} waited so long that its hub forgot whether it had accepted it");
                Err(ClientError::OutcomeUnknown(why))
            }
            MessageOutcome::Outdated => match self.await_epoch(&group, epoch, deadline).await {
                Ok(()) => Ok(Settled::Stale(held)),
                Err(error) => Err(self.give_up(Some(held), error).await),
            },
            MessageOutcome::Proposals => Ok(Settled::Stale(held)),
        }
    }

    pub(super) async fn settle_other(&self, held: Held, deadline: Instant) -> Result<()> {
        let request = held.outgoing.request;
        let answer = self.ask_held(&held, deadline).await?;
        self.transact(move |core| core.settle_other(request, answer)).await
    }

    /// Sends a request of the outbox until it is answered.
    pub(super) async fn ask_held(&self, held: &Held, deadline: Instant) -> Result<Answer> {
        let question = Question::kept(&held.outgoing, held.tried, self.key_of(&held.outgoing.purpose))?;
        self.shared.put(&question, deadline).await.map_err(|error| ClientError::NotConfirmed(error.0))
    }
}

/// What came of sending a message.
pub(super) enum Settled {
    Sent(SentMessage),
    /// It is to be made anew, and waits for that in the outbox.
    Stale(Held),
}

/// Whether an operation that failed so has left nothing in the outbox.
pub(super) fn is_settled(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(_) | ClientError::Invalid(_) | ClientError::OutcomeUnknown(_))
}

impl Plan {
    fn adds(&self, user: &UserUri) -> bool {
        matches!(self, Self::Add(users) | Self::AddClients(users) if users.contains(&user.to_string()))
    }
}

//! Delivery Service requests: load what the decision needs, decide, store, wake.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::groups::{HeldGroup, HotGroup, HotTree, off_the_runtime};
use super::recipients::{Addressed, Wake};
use super::{Failure, Service};
use crate::base::limits::{DECISIONS_MAX, GROUP_LOG_RECORDS_MAX};
use crate::base::rule::{answer, on};
use crate::base::{Context as _, Domain, GroupUri, UnixMillis, UserUri};
use crate::ds::{self, Decision, GroupState, Hub, Outcome, Refusal, Sender, StateChange};
use crate::mls::StagedUpdate;
use crate::storage::answers::{RequestKey, StoredAnswer};
use crate::storage::groups::{AcceptRequest, Acceptance, GroupChange, MemberRow, WriteSnapshot};
use crate::wire::ds::{CreateGroup, DsMessage, DsRequest};
use crate::wire::reply::GroupState as GroupStateReply;
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection, Reply};

/// How one try ended that did not fail.
enum Tried {
    Answered(Vec<u8>),
    NeedsRoots(Vec<Domain>),
    /// The group is not what the decision saw; decide again.
    Conflict,
}

impl Service {
    /// Answers a request to our Delivery Service. `through`: the authenticated domain that the request came through.
    pub(super) async fn ds_request(
        self: &Arc<Self>,
        request: &ClientRequest,
        message: &DsMessage,
        through: &Domain,
    ) -> Result<Vec<u8>, Failure> {
        for _ in 0..DECISIONS_MAX {
            let tried = match &message.request {
                DsRequest::CreateGroup(body) => self.try_create(request, message, body, through).await?,
                DsRequest::ListGroups => self.try_list(request, message, through).await?,
                _ => self.try_existing(request, message, through).await?,
            };
            match tried {
                Tried::Answered(response) => return Ok(response),
                Tried::NeedsRoots(domains) => self.fetch_domains(&domains).await?,
                // Somebody else wrote: what is in memory is old.
                Tried::Conflict => self.groups.slot(&self.group_of(message)?).lock().await.forget(),
            }
        }
        Err(crate::base::Fault::new("a request could not be decided: its group or the roots it needs keep changing").into())
    }

    fn group_of(&self, message: &DsMessage) -> Result<GroupUri, Rejection> {
        let group_id = message.request.group_id().ok_or(ErrorCode::Unsupported)?;
        let uri = GroupUri::from_bytes(group_id).map_err(|_| ErrorCode::UnknownGroup)?;
        if *uri.hub() == self.domain { Ok(uri) } else { Err(ErrorCode::UnknownGroup.into()) }
    }

    async fn try_create(
        self: &Arc<Self>,
        request: &ClientRequest,
        message: &DsMessage,
        body: &CreateGroup,
        through: &Domain,
    ) -> Result<Tried, Failure> {
        let now = UnixMillis::now();
        let roots = self.directory.roots();
        let revoked = self.directory.revoked();
        let created = match ds::create::decide(&self.hub(now, &roots, &revoked), request, message, body, through) {
            Ok(created) => created,
            Err(Refusal::NeedsRoots(domains)) => return Ok(Tried::NeedsRoots(domains)),
            Err(Refusal::Rejected(rejection)) => return Err(rejection.into()),
            Err(Refusal::Failed(fault)) => return Err(fault.into()),
        };
        // DS-203: a client asks about groups so often and no more.
        if on("DS-203") {
            self.rates.count_client(&created.sender_key, now)?;
        }
        let key = RequestKey::new(&created.sender_key, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(Tried::Answered(response));
        }
        Self::check_time(&request.content, now)?;
        let mut group = self.groups.slot(&created.uri).lock().await;
        let change = created.outcome.change.context("a new group has no state")?;
        let response = Self::encode_reply(created.outcome.reply);
        let mut write = group_change(&change)?;
        write.snapshot = Some((0, created.snapshot));
        let accept = AcceptRequest {
            answer: Some(StoredAnswer { key, response: response.clone(), expires_at: Self::answer_expiry(now) }),
            group_id: created.uri.to_string(),
            revision: None,
            change: Some(write),
            deliveries: Vec::new(),
        };
        match self.storage.write(accept).await {
            Ok(Acceptance::Written(_)) => {
                let members = change.set.into_iter().collect();
                group.state = Some(GroupState { uri: created.uri, revision: 0, head: change.head, members });
                group.tree = Some(HotTree { tree: created.tree, log_records: 0 });
                Ok(Tried::Answered(response))
            }
            Ok(Acceptance::Known(known)) => Self::answer_known(known, now).map(Tried::Answered),
            // DS-036 (S6): the group id is unused.
            Ok(Acceptance::Conflict) => Err(answer("DS-036", ErrorCode::InvalidGroupId, ErrorCode::Internal).into()),
            Err(fault) => {
                group.forget();
                Err(fault.into())
            }
        }
    }

    /// list_groups: the groups of this hub that a user is in (X6).
    async fn try_list(
        self: &Arc<Self>,
        request: &ClientRequest,
        message: &DsMessage,
        through: &Domain,
    ) -> Result<Tried, Failure> {
        let now = UnixMillis::now();
        let (roots, revoked) = (self.directory.roots(), self.directory.revoked());
        let user = match ds::sender::authenticate_user(&self.hub(now, &roots, &revoked), request, message, through) {
            Ok(user) => user,
            Err(Refusal::NeedsRoots(domains)) => return Ok(Tried::NeedsRoots(domains)),
            Err(Refusal::Rejected(rejection)) => return Err(rejection.into()),
            Err(Refusal::Failed(fault)) => return Err(fault.into()),
        };
        // DS-203: a client asks about groups so often and no more.
        if on("DS-203") {
            self.rates.count_client(&user.key, now)?;
        }
        Self::check_time(&request.content, now)?;
        let groups = self.storage.groups_of_user(&user.user, self.limits.groups_per_user_max).await?;
        let groups = groups.into_iter().map(|group| Opaque::from(group.into_bytes())).collect();
        Ok(Tried::Answered(Self::encode_reply(Reply::Groups(groups))))
    }

    async fn try_existing(
        self: &Arc<Self>,
        request: &ClientRequest,
        message: &DsMessage,
        through: &Domain,
    ) -> Result<Tried, Failure> {
        let uri = self.group_of(message)?;
        let mut group = self.groups.slot(&uri).lock().await;
        let now = UnixMillis::now();
        let (roots, revoked) = (self.directory.roots(), self.directory.revoked());
        let hub = self.hub(now, &roots, &revoked);
        let Some(state) = group.state(&self.storage, &uri).await? else {
            // DS-013: this hub has such a group.
            return Err(answer("DS-013", ErrorCode::UnknownGroup, ErrorCode::Internal).into());
        };
        let sender = match ds::sender::authenticate(&hub, state, request, message, through) {
            Ok(sender) => sender,
            Err(Refusal::NeedsRoots(domains)) => return Ok(Tried::NeedsRoots(domains)),
            Err(Refusal::Rejected(rejection)) => return Err(rejection.into()),
            Err(Refusal::Failed(fault)) => return Err(fault.into()),
        };
        // DS-203: a client asks about groups so often and no more.
        if on("DS-203") {
            self.rates.count_client(sender.key(), now)?;
        }
        // DS-204: a group is asked about so often and no more.
        if on("DS-204") {
            self.rates.count_group(&uri, now)?;
        }
        let key = RequestKey::new(sender.key(), request.content.request_id, request.content.digest());
        let decided = match self.decide(&hub, &mut group, &uri, &sender, request, message).await {
            Ok(decided) => decided,
            Err(refusal) => {
                // A repeat of an accepted request is decided on a state that it has changed itself: its stored answer counts.
                if let Some(response) = self.stored_answer(&key, now).await? {
                    return Ok(Tried::Answered(response));
                }
                return match refusal {
                    Undecided::NeedsRoots(domains) => Ok(Tried::NeedsRoots(domains)),
                    Undecided::Failed(failure) => Err(failure),
                };
            }
        };
        match decided {
            Decision::WelcomeInfo { epoch } => self.welcome_info(&group, &uri, epoch).await.map(Tried::Answered),
            Decision::ExternalCommitInfo => self.external_commit_info(&mut group, &uri).await.map(Tried::Answered),
            Decision::Outcome(outcome) => self.accept(group, key, *outcome, None, now).await,
            Decision::Commit(accepted) => {
                let ds::commit::Accepted { outcome, update } = *accepted;
                self.accept(group, key, outcome, Some(update), now).await
            }
        }
    }

    async fn decide(
        &self,
        hub: &Hub<'_>,
        group: &mut HotGroup,
        uri: &GroupUri,
        sender: &Sender,
        request: &ClientRequest,
        message: &DsMessage,
    ) -> Result<Decision, Undecided> {
        Self::check_time(&request.content, hub.now)?;
        if let Some(state) = &group.state {
            ds::check_without_tree(hub, state, &message.request)?;
        }
        if ds::needs_tree(&message.request) {
            group.load_tree(&self.storage, uri).await?;
        }
        let HotGroup { state, tree } = group;
        let state = state.as_ref().context("a loaded group has no state")?;
        let tree = tree.as_mut().map(|hot| &mut hot.tree);
        let leaves = if ds::needs_tree(&message.request) { state.members.len() } else { 0 };
        let decision = off_the_runtime(leaves, || ds::decide(hub, state, tree, sender, message))?;
        self.check_groups_per_user(state, &decision).await?;
        self.check_external_commits(hub, state, &decision)?;
        Ok(decision)
    }

    /// DS-205 (R4): a user makes so many external Commits to a group and no more.
    fn check_external_commits(&self, hub: &Hub<'_>, state: &GroupState, decision: &Decision) -> Result<(), Rejection> {
        let Decision::Commit(accepted) = decision else { return Ok(()) };
        let Some((joined, _)) = &accepted.update.changes.joined else { return Ok(()) };
        let set = accepted.outcome.change.iter().flat_map(|change| &change.set);
        for (_, member) in set.filter(|(leaf_index, _)| on("DS-205") && leaf_index == joined) {
            self.rates.count_external_commit(&state.uri, member.client.user(), hub.now)?;
        }
        Ok(())
    }

    /// DS-200: a user is in at most so many groups of this hub.
    async fn check_groups_per_user(&self, state: &GroupState, decision: &Decision) -> Result<(), Failure> {
        let Decision::Commit(accepted) = decision else { return Ok(()) };
        let set = accepted.outcome.change.iter().flat_map(|change| &change.set);
        let new_users: BTreeSet<&UserUri> =
            set.map(|(_, member)| member.client.user()).filter(|user| !state.has_user(user)).collect();
        for user in new_users {
            let groups = self.storage.count_groups_of_user(user).await?;
            if on("DS-200") && groups >= self.limits.groups_per_user_max as u64 {
                return Err(ErrorCode::TooLarge.into());
            }
        }
        Ok(())
    }

    pub(super) fn hub<'a>(
        &'a self,
        now: UnixMillis,
        roots: &'a std::collections::HashMap<Domain, Arc<crate::identity::AsRoots>>,
        revoked: &'a std::collections::HashMap<Domain, Arc<crate::identity::RevokedKeys>>,
    ) -> Hub<'a> {
        Hub {
            domain: &self.domain,
            now,
            roots,
            revoked,
            limits: &self.limits,
            external_sender: self.directory.external_sender(),
            key: &self.keys.ds,
        }
    }

    /// Writes an outcome; the answer leaves only after that. A Commit is merged once it is on disk, under the group's lock; an
    /// outcome that leaves the state alone gives the lock back as soon as its place in the writer's queue is taken.
    async fn accept(
        self: &Arc<Self>,
        group: HeldGroup,
        key: RequestKey,
        outcome: Outcome,
        update: Option<StagedUpdate>,
        now: UnixMillis,
    ) -> Result<Tried, Failure> {
        let state = group.state.as_ref().context("a loaded group has no state")?;
        let response = Self::encode_reply(outcome.reply);
        let mut change = outcome.change.as_ref().map(group_change).transpose()?;
        if let (Some(change), Some(update)) = (&mut change, &update) {
            change.log = Some((update.epoch, update.record.clone()));
        }
        let (deliveries, addressed) = self.deliveries(&outcome.fan_out, now);
        let wakes: Vec<Wake> = deliveries.iter().map(Wake::of).collect();
        let accept = AcceptRequest {
            answer: Some(StoredAnswer { key, response: response.clone(), expires_at: Self::answer_expiry(now) }),
            group_id: state.uri.to_string(),
            revision: Some(state.revision),
            change,
            deliveries,
        };
        let written = self.storage.queue_write(accept).await?;
        // The lock and what follows the commit must not depend on whether the client still waits.
        let service = self.clone();
        let finish = tokio::spawn(async move {
            let group = match outcome.change {
                Some(change) => Some((group, change)),
                None => {
                    drop(group);
                    None
                }
            };
            let acceptance = written.await;
            service
                .finish(group, update, acceptance, &wakes, addressed, now)
                .await
                .map(|tried| tried.unwrap_or(Tried::Answered(response)))
        });
        finish.await.context("a request's last step ended badly")?
    }

    /// After the write: memory follows the disk, and whoever waits is woken. `None` when all is well.
    async fn finish(
        self: &Arc<Self>,
        group: Option<(HeldGroup, StateChange)>,
        update: Option<StagedUpdate>,
        acceptance: Result<Acceptance, crate::base::Fault>,
        wakes: &[Wake],
        addressed: Addressed,
        now: UnixMillis,
    ) -> Result<Option<Tried>, Failure> {
        let undone = match acceptance {
            Ok(Acceptance::Written(taken)) => {
                match (&group, &update) {
                    (_, Some(_)) => self.counts.commits_accepted.one(),
                    (None, None) => self.counts.messages_accepted.one(),
                    // Proposals, and what the Delivery Service does on its own.
                    (Some(_), None) => {}
                }
                self.wake_recipients(wakes);
                self.rejections.report(addressed.rejected(&taken));
                if let Some((mut group, change)) = group {
                    self.apply(&mut group, change, update).await;
                }
                return Ok(None);
            }
            Ok(Acceptance::Known(known)) => Self::answer_known(known, now).map(|response| Some(Tried::Answered(response))),
            Ok(Acceptance::Conflict) => Ok(Some(Tried::Conflict)),
            Err(fault) => {
                // It may be on disk all the same; whoever looks in vain loses nothing.
                self.wake_recipients(wakes);
                Err(fault.into())
            }
        };
        // Another process may have written, or nobody knows what was: read anew.
        if let Some((mut group, _)) = group {
            group.forget();
        }
        undone
    }

    /// Memory follows the disk. Whatever fails here, the request itself was accepted.
    pub(super) async fn apply(self: &Arc<Self>, group: &mut HotGroup, change: StateChange, update: Option<StagedUpdate>) {
        let leaves = if update.is_some() { change.set.len().max(group.leaves()) } else { 0 };
        match off_the_runtime(leaves, || apply_in_memory(group, change, update)) {
            // A snapshot only makes the log shorter: nothing waits for it, and the writer reports a failure.
            Ok(Some(snapshot)) => drop(self.storage.queue_write(snapshot).await),
            Ok(None) => {}
            Err(fault) => {
                tracing::error!("a group in memory could not follow its log and is read anew: {fault}");
                group.forget();
            }
        }
    }

    /// The tree of `epoch` for the joiner whose Welcome begins it, from memory when it is the current one.
    async fn welcome_info(&self, group: &HotGroup, uri: &GroupUri, epoch: u64) -> Result<Vec<u8>, Failure> {
        let ratchet_tree = match &group.tree {
            Some(hot) if hot.tree.epoch() == epoch => hot.tree.ratchet_tree()?,
            _ => self.storage.group_tree(uri, epoch).await?.0.ratchet_tree()?,
        };
        // The Welcome carries the GroupInfo, and the members' proposals of now are not of that epoch.
        let (group_info, proposals) = (Opaque::default(), List::default());
        let reply = GroupStateReply { epoch, ratchet_tree: ratchet_tree.into(), group_info, proposals };
        Ok(Self::encode_reply(Reply::GroupState(reply)))
    }

    /// What an external Commit is made from: everything of the current epoch.
    async fn external_commit_info(&self, group: &mut HotGroup, uri: &GroupUri) -> Result<Vec<u8>, Failure> {
        group.load_tree(&self.storage, uri).await?;
        let state = group.state.as_ref().context("a loaded group has no state")?;
        let tree = group.tree.as_ref().context("a loaded group has no tree")?;
        let group_info = self.storage.group_info(uri).await?.context("a group has no GroupInfo")?;
        let reply = GroupStateReply {
            epoch: state.head.epoch,
            ratchet_tree: tree.tree.ratchet_tree()?.into(),
            group_info: group_info.into(),
            proposals: state.head.proposal_messages(),
        };
        Ok(Self::encode_reply(Reply::GroupState(reply)))
    }
}

/// Why there is no decision.
enum Undecided {
    NeedsRoots(Vec<Domain>),
    Failed(Failure),
}

impl From<Refusal> for Undecided {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Rejected(rejection) => Self::Failed(rejection.into()),
            Refusal::NeedsRoots(domains) => Self::NeedsRoots(domains),
            Refusal::Failed(fault) => Self::Failed(fault.into()),
        }
    }
}

impl<T: Into<Failure>> From<T> for Undecided {
    fn from(failure: T) -> Self {
        Self::Failed(failure.into())
    }
}

/// A state change as records.
pub(super) fn group_change(change: &StateChange) -> Result<GroupChange, crate::base::Fault> {
    let set = change.set.iter().map(|(leaf_index, member)| Ok((*leaf_index, MemberRow::of(member)?)));
    Ok(GroupChange {
        head: change.head.to_record()?,
        group_info: change.group_info.clone(),
        set: set.collect::<Result<_, crate::base::Fault>>()?,
        removed: change.removed.clone(),
        log: None,
        snapshot: None,
        closed_at: change.head.closed_at_ms.map(UnixMillis),
    })
}

/// Memory follows the disk. Returns a snapshot to write when the log has grown long.
fn apply_in_memory(
    group: &mut HotGroup,
    change: StateChange,
    update: Option<StagedUpdate>,
) -> Result<Option<WriteSnapshot>, crate::base::Fault> {
    let state = group.state.as_mut().context("a loaded group has no state")?;
    state.apply(change);
    let Some(update) = update else { return Ok(None) };
    let hot = group.tree.as_mut().context("a loaded group has no tree")?;
    let with_snapshot = hot.log_records + 1 >= GROUP_LOG_RECORDS_MAX;
    let snapshot = hot.tree.merge(update, with_snapshot)?;
    hot.log_records += 1;
    let Some(record) = snapshot else { return Ok(None) };
    hot.log_records = 0;
    let epoch = state.head.epoch;
    let oldest_needed = state.head.joiners.iter().map(|joiner| joiner.epoch).min().unwrap_or(epoch).min(epoch);
    Ok(Some(WriteSnapshot { group_id: state.uri.to_string(), epoch, record, oldest_needed }))
}

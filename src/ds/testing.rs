//! A hub without storage, for the unit tests of the decisions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Accepted, Decision, GroupState, Hub, Outcome, Refusal, Sender, create, decide, needs_tree, sender};
use crate::base::crypto::SigningKey;
use crate::base::limits::Limits;
use crate::base::{Domain, UnixMillis};
use crate::identity::{AsRoot, AsRoots, RevokedKeys};
use crate::mls::Tree;
use crate::mls::external_sender::encode_external_sender;
use crate::mls::testing::TestClient;
use crate::wire::ds::{DsMessage, DsRequest};
use crate::wire::{ClientRequest, Service};

/// The domains of a test, and the hub's own things.
pub(super) struct TestHub {
    pub(super) domain: Domain,
    pub(super) key: SigningKey,
    pub(super) external_sender: Vec<u8>,
    pub(super) as_roots: HashMap<Domain, AsRoot>,
    pub(super) roots: HashMap<Domain, Arc<AsRoots>>,
    pub(super) revoked: HashMap<Domain, Arc<RevokedKeys>>,
    pub(super) limits: Limits,
    pub(super) state: Option<GroupState>,
    pub(super) tree: Option<Tree>,
    /// The first snapshot and all log records, as storage would have them.
    pub(super) snapshot: Vec<u8>,
    pub(super) log: Vec<Vec<u8>>,
    pub(super) group_info: Vec<u8>,
    /// How far the hub's clock is ahead of the machine's.
    pub(super) ahead: Duration,
}

impl TestHub {
    pub(super) fn new() -> Self {
        let now = UnixMillis::now();
        let domains: Vec<Domain> = ["a.test", "b.test", "c.test"].iter().map(|name| name.parse().expect("a domain")).collect();
        let as_roots: HashMap<Domain, AsRoot> =
            domains.iter().map(|domain| (domain.clone(), AsRoot::create(domain, now).expect("a root"))).collect();
        let roots = as_roots.iter().map(|(domain, root)| {
            let roots = AsRoots::new(domain.clone(), vec![root.certificate().to_vec()]).expect("roots");
            (domain.clone(), Arc::new(roots))
        });
        let key = SigningKey::generate().expect("a key");
        let public: [u8; 32] = key.public().try_into().expect("32 octets");
        let own = as_roots.get(&domains[0]).expect("the hub's own");
        let chain = vec![own.issue_service("mimi://a.test/ds", &public, now).expect("a certificate")];
        Self {
            domain: domains[0].clone(),
            external_sender: encode_external_sender(&public, &chain).expect("encodes"),
            key,
            roots: roots.collect(),
            revoked: domains
                .iter()
                .map(|domain| (domain.clone(), Arc::new(RevokedKeys::new([], UnixMillis(u64::MAX)))))
                .collect(),
            limits: Limits::default(),
            as_roots,
            state: None,
            tree: None,
            snapshot: Vec::new(),
            log: Vec::new(),
            group_info: Vec::new(),
            ahead: Duration::ZERO,
        }
    }

    pub(super) fn hub(&self) -> Hub<'_> {
        Hub {
            domain: &self.domain,
            now: UnixMillis::now().plus(self.ahead),
            roots: &self.roots,
            revoked: &self.revoked,
            limits: &self.limits,
            external_sender: &self.external_sender,
            key: &self.key,
        }
    }

    pub(super) fn client(&self, name: &str) -> TestClient {
        let (user, domain) = name.split_once('@').expect("user@domain");
        let domain: Domain = domain.parse().expect("a domain");
        TestClient::new(self.as_roots.get(&domain).expect("a known domain"), user)
    }

    pub(super) fn state(&self) -> &GroupState {
        self.state.as_ref().expect("the group is made")
    }

    pub(super) fn create(&mut self, creator: &mut TestClient) -> Result<(), Refusal> {
        let request = self.creation(creator);
        self.try_create(&request, creator.uri.domain())
    }

    /// A create_group that would be accepted.
    pub(super) fn creation(&self, creator: &mut TestClient) -> ClientRequest {
        creator.create(&self.external_sender)
    }

    pub(super) fn try_create(&mut self, request: &ClientRequest, through: &Domain) -> Result<(), Refusal> {
        let message = ds_message(request);
        let DsRequest::CreateGroup(body) = &message.request else { unreachable!("a create_group") };
        let created = create::decide(&self.hub(), request, message, body, through)?;
        let change = created.outcome.change.expect("a new group has a state");
        self.group_info = change.group_info.unwrap_or_default();
        self.state = Some(GroupState {
            uri: created.uri,
            revision: 0,
            head: change.head,
            members: change.set.into_iter().collect::<BTreeMap<_, _>>(),
        });
        self.tree = Some(created.tree);
        self.snapshot = created.snapshot;
        Ok(())
    }

    /// Verifies a request as the node does.
    pub(super) fn authenticate(&self, request: &ClientRequest, through: &Domain) -> Result<Sender, Refusal> {
        sender::authenticate(&self.hub(), self.state(), request, ds_message(request), through)
    }

    /// Decides a request to the group and, when it is accepted, applies it. Returns the outcome.
    pub(super) fn ask(&mut self, request: &ClientRequest, through: &Domain) -> Result<Outcome, Refusal> {
        match self.decide(request, through)? {
            Decision::Outcome(mut outcome) => {
                self.apply(&mut outcome);
                Ok(*outcome)
            }
            Decision::Commit(accepted) => {
                let Accepted { mut outcome, update } = *accepted;
                self.log.push(update.record.clone());
                self.apply(&mut outcome);
                self.tree.as_mut().expect("the group is made").merge(update, false).expect("merges");
                Ok(outcome)
            }
            Decision::WelcomeInfo { .. } | Decision::ExternalCommitInfo => {
                Ok(Outcome { reply: crate::wire::Reply::Done, change: None, fan_out: Vec::new() })
            }
        }
    }

    /// What the DS does on its own: applied as storage would.
    pub(super) fn act(&mut self, decide: impl FnOnce(&Hub<'_>, &GroupState) -> Option<Outcome>) -> Option<Outcome> {
        let mut outcome = decide(&self.hub(), self.state())?;
        self.apply(&mut outcome);
        Some(outcome)
    }

    /// Whether snapshot and log, the tree in memory and the small record say the same of who is there.
    pub(super) fn check(&self) {
        let id = self.state().uri.to_bytes();
        let restored = Tree::restore(&id, &self.snapshot, self.log.iter().map(Vec::as_slice)).expect("restores");
        assert_eq!(restored.ratchet_tree().expect("encodes"), self.ratchet_tree());
        assert_eq!((restored.epoch(), restored.leaf_indices()), (self.state().head.epoch, self.leaves()));
    }

    /// The leaves that the small record knows.
    pub(super) fn leaves(&self) -> Vec<u32> {
        self.state().members.keys().copied().collect()
    }

    /// The encoded ratchet_tree of the current epoch.
    pub(super) fn ratchet_tree(&self) -> Vec<u8> {
        self.tree.as_ref().expect("the group is made").ratchet_tree().expect("encodes")
    }

    /// Revokes these keys of a domain.
    pub(super) fn revoke(&mut self, domain: &Domain, hashes: &[[u8; 32]]) {
        let keys = RevokedKeys::new(hashes.iter().copied(), UnixMillis(u64::MAX));
        self.revoked.insert(domain.clone(), Arc::new(keys));
    }

    /// Decides a request to the group; nothing changes.
    pub(super) fn decide(&mut self, request: &ClientRequest, through: &Domain) -> Result<Decision, Refusal> {
        let sender = self.authenticate(request, through)?;
        let message = ds_message(request);
        let mut tree = self.tree.take();
        let given = if needs_tree(&message.request) { tree.as_mut() } else { None };
        let decision = decide(&self.hub(), self.state(), given, &sender, message);
        self.tree = tree;
        decision
    }

    fn apply(&mut self, outcome: &mut Outcome) {
        if let Some(change) = outcome.change.take() {
            if let Some(group_info) = &change.group_info {
                self.group_info.clone_from(group_info);
            }
            self.state.as_mut().expect("the group is made").apply(change);
        }
    }
}

/// The DS request in an envelope.
pub(super) fn ds_message(request: &ClientRequest) -> &DsMessage {
    let Service::Ds(message) = &request.content.service else { unreachable!("a DS request") };
    message
}

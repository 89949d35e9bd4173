//! AS roots that come and go (X2): our own domain's, which an operator rolls; and those of other domains, which are followed from what
//! is pinned. What no pinned root vouches for waits for an operator.

use std::sync::Arc;

use super::directory::{not_understood, pins_of};
use super::{Failure, Service};
use crate::base::bytes::hex;
use crate::base::limits::{AS_ROOT_STATEMENTS_MAX, AS_ROOTS_MAX, CLIENT_REQUEST_TIMEOUT, TLS_CA_HASHES_MAX};
use crate::base::secret::Secret;
use crate::base::{Context as _, Domain, Fault, UnixMillis, UserUri};
use crate::ds::removal::Cause;
use crate::identity::chain::validate_user_chain;
use crate::identity::rollover::{RootStep, begin, fingerprint, follow};
use crate::identity::{AsRoot, AsRoots};
use crate::storage::Storage;
use crate::storage::roots::{ChangeRoots, KeepPending, MovePins, Swept};
use crate::wire::info::{DomainInfo, RootStatement};
use crate::wire::{Opaque, decode, encode};

/// The domain's own roots and what it has said about them.
#[derive(Clone, Debug)]
pub struct OwnRoots {
    /// Oldest first; the last one issues.
    roots: Vec<AsRoot>,
    /// Oldest first.
    statements: Vec<RootStatement>,
}

impl OwnRoots {
    /// A domain with its first root.
    pub fn first(root: AsRoot) -> Self {
        Self { roots: vec![root], statements: Vec::new() }
    }

    /// Those of a node's database.
    pub async fn load(storage: &Storage) -> Result<Self, Fault> {
        let stored = storage.own_roots().await?;
        let roots =
            stored.iter().map(|root| AsRoot::load(root.key.expose(), &root.certificate)).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() {
            return Err(Fault::new("the database has no AS root"));
        }
        let statements = storage.own_root_statements().await?;
        let statements = statements
            .iter()
            .map(|statement| decode(statement).context("a statement about the AS roots is not readable"))
            .collect::<Result<_, _>>()?;
        Ok(Self { roots, statements })
    }

    /// The root that issues, and signs what the domain's Authentication Service signs.
    pub fn issuer(&self) -> &AsRoot {
        self.roots.last().expect("there is a root from the first on, and the last one is never retired")
    }

    /// The root certificates (DER), oldest first.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.roots.iter().map(|root| root.certificate().to_vec()).collect()
    }

    /// What the domain has said about them, oldest first.
    pub fn statements(&self) -> &[RootStatement] {
        &self.statements
    }

    /// The number of the newest statement; 0 without one.
    pub fn version(&self) -> u64 {
        version_of(&self.statements)
    }

    /// The statement that comes next: these are the roots from now on, says one of before.
    fn say(&self, domain: &Domain, roots: &[Vec<u8>], tls_ca_hashes: Vec<[u8; 32]>, signer: &AsRoot) -> RootStatement {
        let statement = RootStatement {
            domain: domain.as_bytes().into(),
            version: self.version() + 1,
            as_roots: roots.iter().map(|root| Opaque::from(root.as_slice())).collect(),
            tls_ca_hashes: tls_ca_hashes.iter().map(|hash| Opaque::from(hash.as_slice())).collect(),
            signature: Opaque::default(),
        };
        statement.sign(signer.key())
    }

    /// The TLS CAs that the domain vouches for so far.
    fn tls_ca_hashes(&self) -> Vec<[u8; 32]> {
        let said = self.statements.last().map(|statement| &statement.tls_ca_hashes[..]).unwrap_or_default();
        said.iter().filter_map(|hash| hash[..].try_into().ok()).collect()
    }
}

/// The number of the newest of these statements; 0 without one.
pub(super) fn version_of(statements: &[RootStatement]) -> u64 {
    statements.last().map_or(0, |statement| statement.version)
}

/// What an operator sees of one of the domain's own roots.
#[derive(Clone, Debug)]
pub struct OwnRoot {
    /// [`fingerprint`] of the certificate.
    pub fingerprint: [u8; 32],
    /// The certificate (DER).
    pub certificate: Vec<u8>,
    /// Since when it is there; 0 for the first root of an old database.
    pub since: UnixMillis,
    /// Whether it is the one that issues.
    pub issues: bool,
    /// The users whose certificates are still by it.
    pub users: Vec<UserUri>,
}

/// The domain's own roots, oldest first.
pub async fn own(storage: &Storage, domain: &Domain) -> Result<Vec<OwnRoot>, Fault> {
    let (stored, users, now) = (storage.own_roots().await?, storage.users().await?, UnixMillis::now());
    let last = stored.len().saturating_sub(1);
    let describe = |(index, root): (usize, &crate::storage::roots::StoredRoot)| {
        let alone =
            AsRoots::new(domain.clone(), vec![root.certificate.clone()]).context("an AS root of our own is not usable")?;
        let by_it = users.iter().filter(|user| validate_user_chain(std::slice::from_ref(&user.certificate), &alone, now).is_ok());
        Ok(OwnRoot {
            fingerprint: fingerprint(&root.certificate),
            certificate: root.certificate.clone(),
            since: root.since,
            issues: index == last,
            users: by_it.map(|user| user.uri.clone()).collect(),
        })
    };
    stored.iter().enumerate().map(describe).collect()
}

/// Makes a new root of `domain`, which the one that issued so far vouches for and which issues from now on. A node that runs beside
/// this notices. Returns its fingerprint.
pub async fn roll(storage: &Storage, domain: &Domain, now: UnixMillis) -> Result<[u8; 32], Fault> {
    let own = OwnRoots::load(storage).await?;
    if own.roots.len() >= AS_ROOTS_MAX {
        return Err(Fault::new(format!("there are {AS_ROOTS_MAX} AS roots already: retire one first")));
    }
    let new = AsRoot::create(domain, now)?;
    let roots = [own.certificates(), vec![new.certificate().to_vec()]].concat();
    let statement = own.say(domain, &roots, own.tls_ca_hashes(), own.issuer());
    let added = Some((new.certificate().to_vec(), Secret::new(new.key().pkcs8().expose().to_vec())));
    change(storage, domain, &statement, added, None, now).await?;
    Ok(fingerprint(new.certificate()))
}

/// Retires the root of `domain` with this fingerprint, for good: what it issued is no longer accepted anywhere. Refused for the root
/// that issues; and, without `now_and_for_all`, while users have certificates of it.
pub async fn retire(
    storage: &Storage,
    domain: &Domain,
    of: [u8; 32],
    now_and_for_all: bool,
    now: UnixMillis,
) -> Result<(), Fault> {
    let root = self::own(storage, domain).await?.into_iter().find(|root| root.fingerprint == of);
    let root = root.with_context(|| format!("there is no AS root {}: `roots list` shows those there are", hex(&of)))?;
    if root.issues {
        return Err(Fault::new("this AS root is the one that issues: `roots roll` makes another one first"));
    }
    if let (Some(user), false) = (root.users.first(), now_and_for_all) {
        let count = root.users.len();
        return Err(Fault::new(format!(
            "{count} users, such as {user}, still have certificates of this AS root: their clients renew them by themselves when they \
             are used; --force cuts them off"
        )));
    }
    let own = OwnRoots::load(storage).await?;
    let roots: Vec<Vec<u8>> = own.certificates().into_iter().filter(|certificate| *certificate != root.certificate).collect();
    let statement = own.say(domain, &roots, own.tls_ca_hashes(), own.issuer());
    change(storage, domain, &statement, None, Some(root.certificate), now).await
}

/// Tells the clients of `domain` which TLS CAs to trust from now on for its node: exactly these, by SHA-256 of their
/// SubjectPublicKeyInfo.
pub async fn vouch(storage: &Storage, domain: &Domain, tls_ca_hashes: Vec<[u8; 32]>, now: UnixMillis) -> Result<(), Fault> {
    if tls_ca_hashes.is_empty() || tls_ca_hashes.len() > TLS_CA_HASHES_MAX {
        return Err(Fault::new(format!("between 1 and {TLS_CA_HASHES_MAX} TLS CAs can be vouched for")));
    }
    let own = OwnRoots::load(storage).await?;
    let statement = own.say(domain, &own.certificates(), tls_ca_hashes, own.issuer());
    change(storage, domain, &statement, None, None, now).await
}

async fn change(
    storage: &Storage,
    domain: &Domain,
    statement: &RootStatement,
    added: Option<(Vec<u8>, Secret)>,
    retired: Option<Vec<u8>>,
    now: UnixMillis,
) -> Result<(), Fault> {
    let change = ChangeRoots {
        domain: domain.clone(),
        version: statement.version,
        statement: encode(statement),
        added,
        retired,
        kept: AS_ROOT_STATEMENTS_MAX as u64,
        now,
    };
    if storage.write(change).await? {
        Ok(())
    } else {
        Err(Fault::new("another command changed the AS roots just now: look again"))
    }
}

/// What a domain publishes and no pinned root vouches for.
#[derive(Clone, Debug)]
pub struct PendingRoots {
    /// Whose.
    pub domain: Domain,
    /// Since when.
    pub seen_at: UnixMillis,
    /// The certificates (DER) of the roots that are not pinned.
    pub unknown: Vec<Vec<u8>>,
    /// Those of the roots that are pinned and that the domain no longer publishes.
    pub missing: Vec<Vec<u8>>,
}

/// What waits for an operator's word, by domain.
pub async fn pending(storage: &Storage) -> Result<Vec<PendingRoots>, Fault> {
    let pinned = storage.pinned_domains().await?;
    let mut found = Vec::new();
    for waiting in storage.pending_roots().await? {
        let published = roots_of(&readable(&waiting.info)?);
        let known = pinned.iter().find(|(domain, _)| *domain == waiting.domain);
        let known = known.map(|(_, info)| readable(info).map(|info| roots_of(&info))).transpose()?.unwrap_or_default();
        found.push(PendingRoots {
            unknown: published.iter().filter(|root| !known.contains(root)).cloned().collect(),
            missing: known.into_iter().filter(|root| !published.contains(root)).collect(),
            domain: waiting.domain,
            seen_at: waiting.seen_at,
        });
    }
    Ok(found)
}

/// Pins, as the operator, what `domain` publishes in the place of what is pinned. `fingerprints` must name each root that is not
/// pinned yet: they are what the operator compared. A node that runs beside this notices.
pub async fn approve(storage: &Storage, domain: &Domain, fingerprints: &[[u8; 32]], now: UnixMillis) -> Result<(), Fault> {
    let waiting = storage.pending_roots().await?.into_iter().find(|waiting| waiting.domain == *domain);
    let waiting = waiting.with_context(|| format!("nothing of {domain} waits for approval"))?;
    let pending = pending(storage).await?.into_iter().find(|pending| pending.domain == *domain);
    let pending = pending.with_context(|| format!("nothing of {domain} waits for approval"))?;
    if let Some(unnamed) = pending.unknown.iter().map(|root| fingerprint(root)).find(|root| !fingerprints.contains(root)) {
        return Err(Fault::new(format!("{domain} publishes the AS root {}, too: approve all or none", hex(&unnamed))));
    }
    if let Some(unpublished) = fingerprints.iter().find(|named| !pending.unknown.iter().any(|root| fingerprint(root) == **named))
    {
        return Err(Fault::new(format!("{domain} publishes no AS root {} that is not pinned", hex(unpublished))));
    }
    let retires = !pending.missing.is_empty();
    storage.write(MovePins { domain: domain.clone(), info: waiting.info, retires, approved: true, now }).await
}

fn readable(info: &[u8]) -> Result<DomainInfo, Fault> {
    decode(info).context("what is kept of a domain is not readable")
}

fn roots_of(info: &DomainInfo) -> Vec<Vec<u8>> {
    info.as_roots.iter().map(|root| root.to_vec()).collect()
}

/// What is kept of what a domain publishes.
pub(super) fn to_pin(info: DomainInfo) -> DomainInfo {
    DomainInfo { server_time_ms: 0, qs_keys: Default::default(), ..info }
}

/// The statements of `domain` as they are judged.
fn steps<'a>(domain: &'a Domain, statements: &'a [RootStatement]) -> Vec<RootStep<'a>> {
    let step = |statement: &'a RootStatement| RootStep {
        version: statement.version,
        roots: statement.as_roots.iter().map(|root| root.to_vec()).collect(),
        is_signed_by: Box::new(|key| statement.domain[..] == *domain.as_bytes() && statement.is_signed_by(key)),
    };
    statements.iter().map(step).collect()
}

impl Service {
    /// Our own roots, as they are now.
    pub fn own_roots(&self) -> Arc<OwnRoots> {
        self.directory.own_roots()
    }

    /// Told whenever our own roots have changed.
    pub fn own_roots_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.directory.own_roots_changed()
    }

    /// What waits for the operator's word, by domain.
    pub async fn pending_roots(&self) -> Result<Vec<PendingRoots>, Fault> {
        pending(&self.storage).await
    }

    /// Pins, as the operator, what `domain` publishes; see [`approve`].
    pub async fn approve_roots(self: &Arc<Self>, domain: &Domain, fingerprints: &[[u8; 32]]) -> Result<(), Fault> {
        approve(&self.storage, domain, fingerprints, UnixMillis::now()).await?;
        self.notice_roots().await
    }

    /// Takes up what an operator's command has changed beside this node: our own roots, and those of others that were approved.
    pub(super) async fn notice_roots(self: &Arc<Self>) -> Result<(), Fault> {
        let (version, approved_at) = self.storage.roots_version().await?;
        if version > self.directory.own_roots().version() {
            let roots = OwnRoots::load(&self.storage).await?;
            tracing::info!(version, roots = roots.roots.len(), "the domain's AS roots have changed");
            self.directory.set_own_roots(&self.domain, roots)?;
            // Signed with the root that issues now; whoever gets it and does not know that one asks for it.
            self.status_changed().await;
        }
        if approved_at > self.directory.approved_at() {
            self.directory.reload_pins(&self.storage, approved_at).await?;
            tracing::info!("AS roots of another domain were approved");
        }
        Ok(())
    }

    /// Asks `domain` whether it has other AS roots than those pinned, unless it was asked a moment ago, and follows it. Returns
    /// whether they have changed.
    pub(super) async fn refresh_roots(&self, domain: &Domain) -> bool {
        if !self.directory.may_ask_for_roots(domain, UnixMillis::now()) {
            return false;
        }
        let followed = match self.ask_for_info(domain).await {
            Ok(info) => self.follow_roots(domain, info).await,
            Err(failure) => Err(failure),
        };
        match followed {
            Ok(moved) => moved,
            // A failing peer is in the log already; what is pinned stays.
            Err(Failure::Rejected(_)) => false,
            Err(Failure::Fault(fault)) => {
                tracing::error!(%domain, "a domain's new AS roots could not be pinned: {fault}");
                false
            }
        }
    }

    /// Follows what `domain`, authenticated, publishes now, from what is pinned. Returns whether the pins have moved.
    pub(super) async fn follow_roots(&self, domain: &Domain, published: DomainInfo) -> Result<bool, Failure> {
        let Some(pinned) = self.directory.pinned(domain) else { return Ok(false) };
        let (now, roots) = (UnixMillis::now(), roots_of(&published));
        let pins = pins_of(domain, &pinned)?;
        let version = version_of(&pinned.root_statements);
        let kept = to_pin(published);
        let followed = follow(&pins, version, &roots, &steps(domain, &kept.root_statements), now);
        match followed {
            Ok(None) => {
                self.storage.write(KeepPending { domain: domain.clone(), info: None, now }).await?;
                Ok(false)
            }
            Ok(Some((moved, version))) => {
                let retires = pins.certificates().any(|known| !moved.certificates().any(|root| root == known));
                // What comes after the last step that counted is nobody's word; the hub's ExternalSender is what groups agreed on.
                let said = kept.root_statements.iter().filter(|statement| statement.version <= version).cloned();
                let info = DomainInfo { as_roots: kept.as_roots.clone(), root_statements: said.collect(), ..pinned };
                let info_octets = encode(&info);
                let moving = MovePins { domain: domain.clone(), info: info_octets, retires, approved: false, now };
                self.storage.write(moving).await?;
                self.directory.set_pin(domain, info, moved.asked_at(now));
                tracing::info!(%domain, version, retires, "followed a domain to its new AS roots");
                self.status_work.wake();
                Ok(true)
            }
            Err(why) => {
                let pending = KeepPending { domain: domain.clone(), info: Some(encode(&kept)), now };
                // Only what differs from before is worth a line.
                if self.storage.write(pending).await? {
                    let found: Vec<String> = roots.iter().map(|root| hex(&fingerprint(root))).collect();
                    tracing::warn!(
                        %domain,
                        published = found.join(","),
                        "a domain's AS roots are not taken: {why}. `mimi-node roots list` shows them, `roots approve` accepts them"
                    );
                }
                Ok(false)
            }
        }
    }

    /// Asks the domains whose roots were not compared for long, and those that gave a sign.
    pub(super) async fn poll_roots(self: &Arc<Self>) {
        let mut polls = tokio::task::JoinSet::new();
        for domain in self.directory.roots_due(UnixMillis::now()) {
            let service = self.clone();
            polls.spawn(async move { service.refresh_roots(&domain).await });
        }
        while polls.join_next().await.is_some() {}
    }

    /// Has leaves removed whose chains lead to a root that their domain has retired: at once, and once more when no request is
    /// left that was decided before.
    pub(super) async fn sweep_roots(self: &Arc<Self>) -> Result<(), Fault> {
        let now = UnixMillis::now();
        for sweep in self.storage.root_sweeps().await? {
            let done = sweep.since.plus(CLIENT_REQUEST_TIMEOUT) < now;
            if sweep.begun && !done {
                continue;
            }
            self.remove_leaves_of_retired_roots(&sweep.domain).await?;
            self.storage.write(Swept { domain: sweep.domain, done }).await?;
        }
        Ok(())
    }

    async fn remove_leaves_of_retired_roots(self: &Arc<Self>, domain: &Domain) -> Result<(), Fault> {
        let Some(roots) = self.directory.roots().get(domain).cloned() else { return Ok(()) };
        self.remove_leaves_of(domain, |hub, state, tree| {
            let is_of_domain =
                |leaf_index: &u32| state.members.get(leaf_index).is_some_and(|member| member.client.domain() == domain);
            let gone = tree
                .claims()
                .filter(|(leaf_index, claim)| is_of_domain(leaf_index) && roots.vouched_for_none_of(&claim.chain, hub.now));
            gone.map(|(leaf_index, _)| (leaf_index, Cause::Expired)).collect()
        })
        .await
    }
}

/// At first sight of a domain: what it says about its roots must lead to those that it publishes.
pub(super) fn check_first_sight(domain: &Domain, info: &DomainInfo) -> Result<(), Failure> {
    begin(&pins_of(domain, info)?, &steps(domain, &info.root_statements))
        .map(drop)
        .map_err(|error| not_understood(domain, &error.to_string()))
}

//! Following AS roots (X2): what domains publish is taken when a root that is pinned vouches for it, and this client's certificates
//! are renewed under the root of its own domain that issues now.

use std::sync::Arc;

use openmls::prelude::KeyPackage;
use tokio::time::Instant;

use super::Client;
use super::core::{Core, Result};
use super::enrol::name_user;
use super::error::ClientError;
use super::mls::{self, Leaf, LeafClaim};
use super::state::State;
use crate::base::crypto::SigningKey;
use crate::base::{Context as _, Domain, Fault, UnixMillis, UserUri, limits};
use crate::identity::chain::{AsRoots, claimed_validity_end};
use crate::identity::rollover::{NotFollowed, RootStep, begin, follow};
use crate::wire::accounts::AccountsRequest;
use crate::wire::info::{DomainInfo, RootStatement};
use crate::wire::keys::ClaimedKeyPackage;
use crate::wire::{ErrorCode, List, Opaque, Rejection, Reply, decode, encode};

/// A kept DomainInfo. One of an earlier version ends before the statements.
pub(super) fn kept_info(octets: &[u8]) -> std::result::Result<DomainInfo, Fault> {
    decode(octets).or_else(|_| decode(&[octets, &[0]].concat())).context("a pinned domain is damaged")
}

fn roots_of(info: &DomainInfo) -> Vec<Vec<u8>> {
    info.as_roots.iter().map(|root| root.to_vec()).collect()
}

fn steps<'a>(domain: &'a Domain, statements: &'a [RootStatement]) -> Vec<RootStep<'a>> {
    let step = |statement: &'a RootStatement| RootStep {
        version: statement.version,
        roots: statement.as_roots.iter().map(|root| root.to_vec()).collect(),
        is_signed_by: Box::new(|key| statement.domain[..] == *domain.as_bytes() && statement.is_signed_by(key)),
    };
    statements.iter().map(step).collect()
}

/// The TLS CAs to trust for the own domain's node: what the domain last said, or the one of the invitation.
pub(super) fn tls_pins(state: &State) -> Vec<[u8; 32]> {
    let info = state.domains.get(&state.account.domain).and_then(|kept| kept_info(&kept.0).ok());
    let said = info.and_then(|info| info.root_statements.last().map(|statement| statement.tls_ca_hashes.clone()));
    let said: Vec<[u8; 32]> = said.iter().flat_map(|hashes| hashes.iter()).filter_map(|hash| hash[..].try_into().ok()).collect();
    if said.is_empty() { vec![state.account.tls_ca_spki_hash] } else { said }
}

/// Pins what `domain` publishes: at first sight as it is; later only what pinned roots vouch for. Anything else is refused, and what
/// is pinned stays.
pub(super) fn pin(state: &mut State, domain: &Domain, info: &DomainInfo, now: UnixMillis) -> Result<()> {
    if *info.domain != *domain.as_bytes() {
        return Err(ClientError::Untrusted(format!("asked about {domain}, the node answered about another domain")));
    }
    let unusable = |error: &dyn std::fmt::Display| ClientError::Untrusted(format!("the AS roots of {domain}: {error}"));
    let published = AsRoots::new(domain.clone(), roots_of(info)).map_err(|error| unusable(&error))?;
    let said = steps(domain, &info.root_statements);
    let info = match state.domains.get(domain.as_str()) {
        None => {
            begin(&published, &said).map_err(|error| unusable(&error))?;
            info.clone()
        }
        Some(known) => {
            let known = kept_info(&known.0)?;
            let pinned = AsRoots::new(domain.clone(), roots_of(&known)).map_err(|error| unusable(&error))?;
            let version = known.root_statements.last().map_or(0, |statement| statement.version);
            match follow(&pinned, version, &roots_of(info), &said, now) {
                Ok(None) => DomainInfo { as_roots: known.as_roots, root_statements: known.root_statements, ..info.clone() },
                Ok(Some((_, version))) => {
                    let accepted = info.root_statements.iter().filter(|statement| statement.version <= version).cloned();
                    DomainInfo { root_statements: accepted.collect(), external_sender: known.external_sender, ..info.clone() }
                }
                Err(NotFollowed::Unsigned) => {
                    return Err(ClientError::Untrusted(format!(
                        "{domain} has other AS roots than when it was seen last, and none of those vouches for them"
                    )));
                }
                Err(error) => return Err(unusable(&error)),
            }
        }
    };
    state.domains.insert(domain.to_string(), super::state::Blob(encode(&info)));
    Ok(())
}

/// Whether a user certificate is to be renewed: it is not by the root that issues now, or its time is nearly over.
pub(super) fn is_due(certificate: &[u8], roots: &AsRoots, now: UnixMillis) -> bool {
    let ends = claimed_validity_end(&[certificate.to_vec()]).unwrap_or_default();
    !roots.issuer_is_current(certificate, now) || ends < now.plus(limits::USER_CERTIFICATE_LIFETIME / 4)
}

impl Core {
    /// The roots to check `chain` against, which came here at the time `at`. `None`: `domain` has to be asked first, because it was not
    /// seen yet, or because none of its roots vouches for the chain and it was not asked since.
    pub(super) fn roots_for(&mut self, domain: &Domain, chain: &[Vec<u8>], at: UnixMillis) -> Option<Arc<AsRoots>> {
        let known = self.roots(domain);
        let unknown = known.as_ref().is_none_or(|roots| roots.were_asked_before(at) && roots.vouched_for_none_of(chain, at));
        if unknown {
            // Whatever the clocks say: the answer will be later than this.
            let doubted = self.doubted.entry(domain.clone()).or_default();
            *doubted = at.max(*doubted);
            return None;
        }
        known
    }

    /// KeyPackages of `user` as they were claimed at the time `now`, each proven to be that client's (R7, R8). `None`: the user's domain is to be asked
    /// first.
    pub(super) fn check_claimed(
        &mut self,
        user: &UserUri,
        packages: List<ClaimedKeyPackage>,
        now: UnixMillis,
    ) -> Result<Option<Vec<KeyPackage>>> {
        let mut checked = Vec::new();
        for claimed in packages {
            let not_trusted = |why: String| ClientError::Untrusted(format!("a KeyPackage of {user}: {why}"));
            let package = mls::read_key_package(&self.provider, &claimed.key_package).map_err(not_trusted)?;
            let claim = LeafClaim::of_leaf(package.leaf_node()).map_err(not_trusted)?;
            let Some(roots) = self.roots_for(user.domain(), &claim.chain, now) else { return Ok(None) };
            let client = claim.check(&roots, now).map_err(not_trusted)?;
            if client.user() != user || client.to_bytes() != *claimed.client {
                return Err(not_trusted(format!("it is {client}'s")));
            }
            checked.push(package);
        }
        if checked.is_empty() { Err(Rejection::new(ErrorCode::UnknownUser).into()) } else { Ok(Some(checked)) }
    }

    /// Takes up a new certificate for the user's key, and issues this client's own under it: leaves and KeyPackages are due for it.
    fn take_up_certificate(&mut self, certificate: Vec<u8>, now: UnixMillis) -> Result<Arc<Leaf>> {
        let domain = self.me.domain().clone();
        let roots = self.roots(&domain).ok_or_else(|| Fault::new("the own domain's roots are not known"))?;
        let mut account = self.state.account.clone();
        let user: UserUri = name_user(&mut account, &roots, certificate, now)?;
        if user != *self.me.user() {
            return Err(ClientError::Untrusted("the renewed certificate is for another user".into()));
        }
        self.state.account = account;
        let chain = vec![self.state.account.client_certificate.0.clone(), self.state.account.user_certificate.0.clone()];
        let leaf = Arc::new(Leaf { key: SigningKey::from_pkcs8(&self.state.account.client_key.0)?, chain });
        self.leaf = leaf.clone();
        for group in self.state.groups.values_mut() {
            group.leaf_renewed_ms = 0;
        }
        self.save()?;
        Ok(leaf)
    }
}

impl Client {
    /// Asks the own domain what it publishes now, follows its AS roots, and renews this client's certificates when another root issues
    /// by now or their time is nearly over: then leaves and KeyPackages follow. Returns whether they were renewed.
    pub async fn renew_certificates(&self) -> Result<bool> {
        let deadline = self.deadline();
        let renewed = self.renew_by(deadline).await?;
        if renewed {
            self.renew_queue().await?;
        }
        Ok(renewed)
    }

    /// As [`Client::renew_certificates`], but for what follows.
    pub(super) async fn renew_by(&self, deadline: Instant) -> Result<bool> {
        let (domain, now) = (self.uri().domain().clone(), self.shared.now());
        self.ask_domain(&domain, deadline).await?;
        let due = self
            .transact(move |core| {
                let roots = core.roots(&domain).ok_or_else(|| Fault::new("the own domain's roots are not known"))?;
                Ok((is_due(&core.state.account.user_certificate.0, &roots, now), tls_pins(&core.state)))
            })
            .await?;
        let (due, pins) = due;
        if due {
            let Reply::Enrolled(renewed) = self.ask_account_by(AccountsRequest::Renew, deadline).await? else {
                return Err(ClientError::Untrusted("the node answered a renewal with something else".into()));
            };
            let leaf = self.transact(move |core| core.take_up_certificate(renewed.certificate.into_vec(), now)).await?;
            self.shared.leaf.store(leaf);
        }
        let leaf = self.shared.leaf.load_full();
        self.shared.node.present(&pins, &leaf, due).await?;
        Ok(due)
    }

    /// The client's chain as requests carry it.
    pub(super) fn certificates(&self) -> List<Opaque> {
        self.shared.leaf.load().chain.iter().map(|der| Opaque::from(der.as_slice())).collect()
    }

    /// As [`Client::renew_certificates`], now and then.
    pub(super) async fn keep_certificates(&self) -> Result<()> {
        let now = Instant::now();
        {
            let mut due = self.shared.renewal_due.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if now < *due {
                return Ok(());
            }
            *due = now + limits::CLIENT_RENEWAL_INTERVAL;
        }
        if self.renew_by(now + limits::CLIENT_CHORES_TIMEOUT).await? {
            self.begin_generation(now + limits::CLIENT_CHORES_TIMEOUT).await?;
            self.shared.chores_due.notify_one();
        }
        Ok(())
    }
}

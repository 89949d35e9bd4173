//! [`Trust`]: whose certificates this node believes, and for which peer (C3; *Certificates of nodes* in `docs/protocol.md`).
//!
//! | is trusted | for | may be narrowed by |
//! |---|---|---|
//! | the CAs of bundles, and the web's roots | every domain that has no pin | revocation lists |
//! | a pinned key of a CA or of a node | the one domain that has the pin, and then nothing else is | revocation lists |
//!
//! A certificate is judged twice when a peer connects: in the handshake, when its domain is not known yet, and after `hello`, when
//! it is. The second judgement is the one that counts; the first keeps strangers out and tells them why in a TLS alert.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::{CertificateError, Error};
use serde::{Deserialize, Serialize};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use super::verify::{PeerPurposes, refused};
use crate::base::bytes::{hex, unhex};
use crate::base::crypto::sha256;
use crate::base::{Context as _, Domain, Fault, UnixMillis};
use crate::identity::Crl;
use crate::identity::tls::{names, spki_hash, stands_for, subject_and_key};

/// SHA-256 of a SubjectPublicKeyInfo (RFC 7469), as `mimi-node certs inspect` shows it; hexadecimal in a configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let octets = unhex(text).and_then(|octets| octets.try_into().ok());
        octets.map(Self).with_context(|| format!("{text:?} is no pin: 64 hexadecimal digits, as `certs inspect` shows them"))
    }
}

impl TryFrom<String> for Pin {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        hex(&pin.0)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({})", hex(&self.0))
    }
}

/// What is different for the certificates of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerTrust {
    /// Keys, each of a CA or of the node itself. With at least one, nothing else vouches for this peer: neither the bundle nor the
    /// web's roots.
    pub pins: Vec<Pin>,
    /// Whether a certificate for `*.<rest>` will do, when the peer's domain is `<label>.<rest>`.
    pub wildcard: bool,
}

/// A file's content, and what to call it in a message.
#[derive(Clone, Debug)]
pub struct Source {
    /// Such as its path.
    pub name: String,
    /// What is in it.
    pub octets: Vec<u8>,
}

/// What [`Trust`] is made from.
#[derive(Clone, Debug, Default)]
pub struct TrustSources {
    /// CAs, PEM. Every certificate must be usable.
    pub authorities: Vec<Source>,
    /// The web's roots, PEM. A certificate that cannot be used is passed over: nobody here chose them one by one.
    pub web_roots: Vec<Source>,
    /// Revocation lists, PEM or DER.
    pub crls: Vec<Source>,
    /// Whether a list whose next one is overdue counts as no list at all, so that every certificate of its CA is refused. Without
    /// it such a list still counts for what it says: a forgotten renewal must not cut a whole federation off.
    pub refuse_stale_crls: bool,
    /// What is different for single peers.
    pub peers: BTreeMap<Domain, PeerTrust>,
}

/// A root and what is needed to find it by its key.
struct Root {
    anchor: TrustAnchor<'static>,
    key: [u8; 32],
    subject_der: Vec<u8>,
    spki_der: Vec<u8>,
}

struct List {
    about: Crl,
    list: CertRevocationList<'static>,
}

/// Whose certificates this node believes. Immutable: it is replaced as a whole.
pub struct Trust {
    authorities: Arc<Authorities>,
    peers: Arc<BTreeMap<Domain, PeerTrust>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What holds for every peer that has no pin.
struct Authorities {
    anchors: Vec<TrustAnchor<'static>>,
    /// The keys of `anchors`, in the same order.
    keys: Vec<[u8; 32]>,
    /// Newest first: of several lists of one CA the newest speaks.
    lists: Vec<List>,
    refuse_stale_crls: bool,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Trust({} CAs, {} revocation lists, {} peers)",
            self.authorities(),
            self.authorities.lists.len(),
            self.peers.len()
        )
    }
}

impl Trust {
    /// Reads the sources. Fails with one sentence when one cannot be read, when a revocation list is not signed by the CA of its
    /// name, or when nobody at all is trusted.
    pub fn read(sources: &TrustSources) -> Result<Self, Fault> {
        let mut roots = Vec::new();
        for source in &sources.authorities {
            for certificate in certificates(&source.octets, &source.name)? {
                let cannot = || format!("a certificate in {} cannot be used", source.name);
                roots.push(root(&certificate).with_context(cannot)?);
            }
        }
        for source in &sources.web_roots {
            let known = roots.len();
            let certificates = CertificateDer::pem_slice_iter(&source.octets);
            roots.extend(certificates.filter_map(Result::ok).filter_map(|certificate| root(&certificate).ok()));
            if roots.len() == known {
                return Err(Fault::new(format!("{} holds no certificate that can be used", source.name)));
            }
        }
        let mut lists = Vec::new();
        for source in &sources.crls {
            for about in Crl::read(&source.octets).with_context(|| format!("cannot use {}", source.name))? {
                let list = OwnedCertRevocationList::from_der(&about.der)
                    .with_context(|| format!("the revocation list of {} in {} cannot be used", about.issuer, source.name))?;
                let mut issuers = roots.iter().filter(|root| about.is_of(&root.subject_der)).peekable();
                if issuers.peek().is_some() && !issuers.any(|root| about.is_signed_by(&root.spki_der)) {
                    return Err(Fault::new(format!(
                        "the revocation list in {} is not signed by the trusted CA that it names, {}",
                        source.name, about.issuer
                    )));
                }
                lists.push(List { about, list: list.into() });
            }
        }
        if roots.is_empty() && sources.peers.values().all(|peer| peer.pins.is_empty()) {
            return Err(Fault::new("no peer can be trusted: give tls.authorities, tls.web_roots, or a peer's pin"));
        }
        lists.sort_by_key(|list| std::cmp::Reverse(list.about.this_update));
        let (anchors, keys) = roots.into_iter().map(|root| (root.anchor, root.key)).unzip();
        Ok(Self {
            authorities: Arc::new(Authorities { anchors, keys, lists, refuse_stale_crls: sources.refuse_stale_crls }),
            peers: Arc::new(sources.peers.clone()),
            algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms,
        })
    }

    /// The same with what is different for single peers replaced.
    #[must_use]
    pub fn with_peers(&self, peers: Arc<BTreeMap<Domain, PeerTrust>>) -> Self {
        Self { authorities: self.authorities.clone(), peers, algorithms: self.algorithms }
    }

    /// What is different for single peers.
    pub fn peers(&self) -> &Arc<BTreeMap<Domain, PeerTrust>> {
        &self.peers
    }

    /// How many CAs are trusted for every domain.
    pub fn authorities(&self) -> usize {
        self.authorities.anchors.len()
    }

    /// The revocation lists, newest first.
    pub fn crls(&self) -> impl Iterator<Item = &Crl> {
        self.authorities.lists.iter().map(|list| &list.about)
    }

    /// What is different for this peer.
    pub(super) fn special(&self, domain: &Domain) -> Option<&PeerTrust> {
        self.peers.get(domain)
    }

    pub(super) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// Judges the certificate of the peer that is known to be meant, `domain`: vouched for, not revoked, in its time, for TLS, and
    /// with the domain's name.
    pub(super) fn check(
        &self,
        domain: &Domain,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let special = self.peers.get(domain);
        match special.map(|special| special.pins.as_slice()) {
            None | Some([]) => self.verify(&self.authorities.anchors, leaf, intermediates, now)?,
            Some(pins) => self.check_pins(pins, leaf, intermediates, now)?,
        }
        if stands_for(leaf, domain, special.is_some_and(|special| special.wildcard)) {
            return Ok(());
        }
        Err(Error::InvalidCertificate(match ServerName::try_from(domain.to_string()) {
            Ok(expected) => CertificateError::NotValidForNameContext { expected, presented: names(leaf) },
            Err(_) => CertificateError::NotValidForName,
        }))
    }

    /// Judges the certificate of a peer that has not said yet who it is: somebody must vouch for one of its names. Whoever this
    /// lets in still has to pass [`Trust::check`].
    pub(super) fn check_unnamed(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let by_pin = self
            .peers
            .iter()
            .filter(|(domain, special)| !special.pins.is_empty() && stands_for(leaf, domain, special.wildcard))
            .map(|(_, special)| self.check_pins(&special.pins, leaf, intermediates, now))
            .reduce(|before, next| if before.is_ok() { before } else { next });
        match by_pin {
            Some(Ok(())) => Ok(()),
            // It may name other domains, too.
            Some(Err(error)) => self.verify(&self.authorities.anchors, leaf, intermediates, now).map_err(|_| error),
            None => self.verify(&self.authorities.anchors, leaf, intermediates, now),
        }
    }

    fn check_pins(
        &self,
        pins: &[Pin],
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let is_pinned = |key: &[u8; 32]| pins.iter().any(|pin| pin.0 == *key);
        let has_pinned_key = |der: &CertificateDer<'_>| spki_hash(der).is_ok_and(|key| is_pinned(&key));
        if has_pinned_key(leaf) {
            // Nobody need vouch for a pinned node, but it must be in its time and for TLS; and a CA that is trusted anyway may
            // have revoked it.
            let alone = self.verify(&[], leaf, &[], now);
            let under_a_ca = self.verify(&self.authorities.anchors, leaf, intermediates, now);
            return match (alone, under_a_ca) {
                (_, Err(error @ Error::InvalidCertificate(CertificateError::Revoked))) => Err(error),
                (Ok(()) | Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)), _) => Ok(()),
                (Err(error), _) => Err(error),
            };
        }
        let sent = intermediates.iter().filter(|certificate| has_pinned_key(certificate));
        let sent = sent.filter_map(|certificate| webpki::anchor_from_trusted_cert(certificate).ok());
        let (anchors, keys) = (&self.authorities.anchors, &self.authorities.keys);
        let known = anchors.iter().zip(keys).filter(|(_, key)| is_pinned(key)).map(|(anchor, _)| anchor.clone());
        let anchors: Vec<TrustAnchor<'_>> = sent.chain(known).collect();
        self.verify(&anchors, leaf, intermediates, now)
    }

    /// The chain from `leaf` to one of `anchors`: signatures, times, key usages, name constraints, revocation.
    fn verify(
        &self,
        anchors: &[TrustAnchor<'_>],
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let concerned = |list: &&List| list.about.concerns(leaf) || intermediates.iter().any(|one| list.about.concerns(one));
        let lists: Vec<&CertRevocationList<'_>> =
            self.authorities.lists.iter().filter(concerned).map(|list| &list.list).collect();
        // A CA without a list revokes nobody: most have none here.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let expiration =
                if self.authorities.refuse_stale_crls { ExpirationPolicy::Enforce } else { ExpirationPolicy::Ignore };
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(expiration)
                .build()
        });
        let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
        certificate
            .verify_for_usage(self.algorithms.all, anchors, intermediates, now, PeerPurposes, revocation, None)
            .map_err(refused)?;
        Ok(())
    }

    /// The revocation lists whose successors are overdue.
    pub fn stale_crls(&self, now: UnixMillis) -> impl Iterator<Item = &Crl> {
        self.crls().filter(move |list| list.next_update <= now)
    }
}

fn root(der: &CertificateDer<'_>) -> Result<Root, Fault> {
    let anchor = webpki::anchor_from_trusted_cert(der).context("it cannot be a CA")?.to_owned();
    let (subject_der, spki_der) = subject_and_key(der).context("it is no certificate")?;
    Ok(Root { anchor, key: sha256(&spki_der), subject_der, spki_der })
}

/// The certificates in a PEM text, at least one.
pub(super) fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let certificates =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().with_context(|| format!("{what} is not valid PEM"))?;
    if certificates.is_empty() {
        return Err(Fault::new(format!("{what} holds no certificate (BEGIN CERTIFICATE)")));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests;

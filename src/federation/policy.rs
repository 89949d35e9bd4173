//! [`PeerPolicies`]: who may federate with this node, where it is, by what it is known, and how much it may ask for. Pure.
//!
//! Three things are said of a peer, each over the one before it; what one does not say is what the one before says:
//!
//! 1. the mode, and the limits that hold for everyone;
//! 2. `[peers."b.example"]` of the configuration;
//! 3. what an operator has said while the node runs, which is kept in the database.
//!
//! Who is denied is neither dialled nor let in. Who is held is not dialled, and is let in. Either way what waits for the peer stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::base::limits::{DIAL_ADDRESSES_MAX, Limits, PeerLimits, PeerLimitsOverride, REASON_BYTES_MAX};
use crate::base::{Domain, Fault};
use crate::transport::{AddressPolicy, Network, PeerTrust, Pin};

/// `[federation] mode`: what holds for a peer of which nobody has said whether it may federate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It may.
    #[default]
    Open,
    /// It may not: only those do that are allowed.
    AllowList,
    /// It may: everyone does but those that are denied. Decides as [`Mode::Open`]; the name says that there is a list.
    DenyList,
}

/// Whether a peer may federate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// What is said of one peer in one place, the configuration or at run time. `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerOverride {
    /// Whether it may federate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Whether nothing is sent to it for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Why, in an operator's words: for the log and for listings, never for the peer. At most [`REASON_BYTES_MAX`] octets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where its nodes are, in the order in which to try them, instead of what DNS says; none: what DNS says. These very addresses
    /// are dialled whatever they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<SocketAddr>>,
    /// Networks that are dialled for it although they are not for the public internet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempt: Option<Vec<Network>>,
    /// Keys, each of a CA or of the node itself: with at least one, nothing else vouches for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pins: Option<Vec<Pin>>,
    /// Whether a certificate for `*.<rest>` will do, when its domain is `<label>.<rest>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wildcard: Option<bool>,
    /// How much it may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<PeerLimitsOverride>,
}

impl PeerOverride {
    /// Whether it changes nothing. A reason alone does not.
    pub fn is_empty(&self) -> bool {
        let said = Self { reason: None, limits: self.limits.filter(|limits| !limits.is_empty()), ..self.clone() };
        said == Self::default()
    }

    /// Refuses what could not work, in a sentence that follows the peer's name and "has".
    pub fn check(&self) -> Result<(), String> {
        if self.addresses.as_ref().is_some_and(|addresses| addresses.len() > DIAL_ADDRESSES_MAX) {
            return Err(format!("more than {DIAL_ADDRESSES_MAX} addresses"));
        }
        for (what, length) in
            [("exempt networks", self.exempt.as_ref().map(Vec::len)), ("pins", self.pins.as_ref().map(Vec::len))]
        {
            if length.is_some_and(|length| length > DIAL_ADDRESSES_MAX) {
                return Err(format!("more than {DIAL_ADDRESSES_MAX} {what}"));
            }
        }
        if self.reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(format!("a reason of more than {REASON_BYTES_MAX} octets"));
        }
        match self.limits.as_ref().and_then(PeerLimitsOverride::forbidding) {
            Some(name) => Err(format!("a {name} of 0, which forbids everything: deny it instead")),
            None => Ok(()),
        }
    }
}

/// Why a peer may not federate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    /// The mode is [`Mode::AllowList`], and nobody has allowed it.
    NotListed,
    /// The configuration denies it.
    Configuration,
    /// An operator has denied it at run time.
    Operator,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotListed => "it is not on the allow-list",
            Self::Configuration => "the configuration denies it",
            Self::Operator => "an operator has denied it",
        })
    }
}

/// All that holds for one peer, whoever has said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectivePolicy {
    /// Why it may not federate; `None`: it may.
    pub denied: Option<Denial>,
    /// Whether nothing is sent to it for now.
    pub held: bool,
    /// Why, in an operator's words.
    pub reason: Option<String>,
    /// Where its nodes are, instead of what DNS says.
    pub addresses: Vec<SocketAddr>,
    /// Networks that are dialled for it although they are not for the public internet, beside those of `[dial]`.
    pub exempt: Vec<Network>,
    /// What is different for its certificates.
    pub trust: PeerTrust,
    /// How much it may ask for.
    pub limits: PeerLimits,
    /// Whether the configuration speaks of it.
    pub configured: bool,
    /// What was said at run time.
    pub overridden: Option<PeerOverride>,
}

/// Why an operator wants a peer left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// It may not federate.
    Denied(Denial),
    /// Nothing is sent to it for now.
    Held,
}

impl EffectivePolicy {
    /// Why it is left alone, if it is.
    pub fn closure(&self) -> Option<Closure> {
        self.denied.map(Closure::Denied).or(self.held.then_some(Closure::Held))
    }

    /// The same in words, with the operator's; for the log.
    pub fn closure_text(&self) -> String {
        let closure = match self.closure() {
            Some(Closure::Denied(denial)) => denial.to_string(),
            Some(Closure::Held) if self.overridden.as_ref().is_some_and(|said| said.hold.is_some()) => {
                "an operator holds it".to_owned()
            }
            Some(Closure::Held) => "the configuration holds it".to_owned(),
            None => "it may be tried".to_owned(),
        };
        match &self.reason {
            Some(reason) => format!("{closure}: {reason}"),
            None => closure,
        }
    }
}

/// What is said of all peers. Immutable: it is replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicies {
    mode: Mode,
    limits: PeerLimits,
    configured: BTreeMap<Domain, PeerOverride>,
    overrides: BTreeMap<Domain, PeerOverride>,
}

impl Default for PeerPolicies {
    fn default() -> Self {
        Self::new(Mode::default(), Limits::default().per_peer(), BTreeMap::new())
    }
}

impl PeerPolicies {
    /// What the configuration says. `limits`: of every peer that nothing else is said of.
    pub fn new(mode: Mode, limits: PeerLimits, configured: BTreeMap<Domain, PeerOverride>) -> Self {
        Self { mode, limits, configured, overrides: BTreeMap::new() }
    }

    /// The same with everything that was said at run time.
    #[must_use]
    pub fn with_overrides(self, overrides: BTreeMap<Domain, PeerOverride>) -> Self {
        Self { overrides, ..self }
    }

    /// The same with other things said of one peer at run time; an empty override is none.
    #[must_use]
    pub fn with_override(&self, peer: &Domain, said: PeerOverride) -> Self {
        let mut next = self.clone();
        if said.is_empty() {
            next.overrides.remove(peer);
        } else {
            next.overrides.insert(peer.clone(), said);
        }
        next
    }

    /// What holds for a peer of which nobody has said whether it may federate.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What was said of a peer at run time; empty when nothing was.
    pub fn override_of(&self, peer: &Domain) -> PeerOverride {
        self.overrides.get(peer).cloned().unwrap_or_default()
    }

    /// How many peers something was said of at run time.
    pub fn overrides(&self) -> usize {
        self.overrides.len()
    }

    /// The peers of which the configuration or an operator has said anything, in the order of their names.
    pub fn named(&self) -> BTreeSet<&Domain> {
        self.configured.keys().chain(self.overrides.keys()).collect()
    }

    /// All that holds for a peer.
    pub fn of(&self, peer: &Domain) -> EffectivePolicy {
        EffectivePolicy {
            denied: self.denied(peer),
            held: self.said(peer, |said| said.hold).unwrap_or(false),
            reason: self.said(peer, |said| said.reason.clone()),
            addresses: self.addresses(peer),
            exempt: self.said(peer, |said| said.exempt.clone()).unwrap_or_default(),
            trust: self.trust_of(peer),
            limits: self.limits(peer),
            configured: self.configured.contains_key(peer),
            overridden: self.overrides.get(peer).cloned(),
        }
    }

    /// Why a peer may not federate; `None`: it may.
    pub fn denied(&self, peer: &Domain) -> Option<Denial> {
        let sources = [(&self.overrides, Denial::Operator), (&self.configured, Denial::Configuration)];
        let said = sources.into_iter().find_map(|(source, denial)| Some((source.get(peer)?.access?, denial)));
        match (said, self.mode) {
            (Some((Access::Allow, _)), _) | (None, Mode::Open | Mode::DenyList) => None,
            (Some((Access::Deny, denial)), _) => Some(denial),
            (None, Mode::AllowList) => Some(Denial::NotListed),
        }
    }

    /// How much a peer may ask for.
    pub fn limits(&self, peer: &Domain) -> PeerLimits {
        let said = [&self.configured, &self.overrides].into_iter().filter_map(|source| source.get(peer)?.limits);
        said.fold(self.limits, |below, said| said.over(below))
    }

    /// Where a peer's nodes are, instead of what DNS says.
    pub fn addresses(&self, peer: &Domain) -> Vec<SocketAddr> {
        self.said(peer, |said| said.addresses.clone()).unwrap_or_default()
    }

    /// What is different for a peer's certificates.
    pub fn trust_of(&self, peer: &Domain) -> PeerTrust {
        PeerTrust {
            pins: self.said(peer, |said| said.pins.clone()).unwrap_or_default(),
            wildcard: self.said(peer, |said| said.wildcard).unwrap_or(false),
        }
    }

    /// What is different for the certificates of single peers.
    pub fn trust(&self) -> BTreeMap<Domain, PeerTrust> {
        let all = self.named().into_iter().map(|peer| (peer.clone(), self.trust_of(peer)));
        all.filter(|(_, trust)| *trust != PeerTrust::default()).collect()
    }

    /// Where peers may be dialled: `everyone`, what is exempt for single ones, and the addresses that are written down for them.
    pub fn address_policy(&self, everyone: &AddressPolicy) -> AddressPolicy {
        self.named().into_iter().fold(everyone.clone(), |policy, peer| {
            let exempt = self.said(peer, |said| said.exempt.clone()).unwrap_or_default();
            let written = self.addresses(peer).into_iter().map(|address| Network::from(address.ip()));
            policy.and_for(peer, exempt.into_iter().chain(written))
        })
    }

    /// What an operator has said of `peer`, or else the configuration.
    fn said<T>(&self, peer: &Domain, what: impl Fn(&PeerOverride) -> Option<T>) -> Option<T> {
        [&self.overrides, &self.configured].into_iter().find_map(|source| source.get(peer).and_then(&what))
    }
}

/// An override as text, for the database.
pub fn encode_override(said: &PeerOverride) -> Result<String, Fault> {
    serde_json::to_string(said).map_err(|error| Fault::because("a peer's override cannot be written as text", error))
}

/// An override from [`encode_override`]'s text.
pub fn decode_override(peer: &Domain, text: &str) -> Result<PeerOverride, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::because(format!("what was said of the peer {peer} is not readable"), error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain(name: &str) -> Domain {
        name.parse().expect("a domain")
    }

    fn access(access: Option<Access>) -> PeerOverride {
        PeerOverride { access, ..PeerOverride::default() }
    }

    fn policies(mode: Mode, file: PeerOverride, said: PeerOverride) -> PeerPolicies {
        let b = domain("b.test");
        PeerPolicies::new(mode, Limits::default().per_peer(), BTreeMap::from([(b.clone(), file)])).with_override(&b, said)
    }

    #[test]
    fn who_may_federate_is_decided_by_operator_then_file_then_mode() {
        use Access::{Allow, Deny};
        use Denial::{Configuration, NotListed, Operator};
        use Mode::{AllowList, DenyList, Open};
        for (mode, file, said, denied) in [
            (Open, None, None, None),
            (Open, Some(Allow), None, None),
            (Open, Some(Deny), None, Some(Configuration)),
            (Open, None, Some(Deny), Some(Operator)),
            (Open, Some(Allow), Some(Deny), Some(Operator)),
            (Open, Some(Deny), Some(Allow), None),
            (DenyList, None, None, None),
            (DenyList, Some(Deny), None, Some(Configuration)),
            (DenyList, Some(Deny), Some(Allow), None),
            (DenyList, None, Some(Deny), Some(Operator)),
            (AllowList, None, None, Some(NotListed)),
            (AllowList, Some(Allow), None, None),
            (AllowList, Some(Deny), None, Some(Configuration)),
            (AllowList, None, Some(Allow), None),
            (AllowList, Some(Allow), Some(Deny), Some(Operator)),
            (AllowList, Some(Deny), Some(Allow), None),
        ] {
            let policies = policies(mode, access(file), access(said));
            assert_eq!(policies.of(&domain("b.test")).denied, denied, "{mode:?} {file:?} {said:?}");
            let stranger = policies.denied(&domain("c.test"));
            assert_eq!(stranger, (mode == AllowList).then_some(NotListed), "what is said of b says nothing of c");
        }
    }

    #[test]
    fn what_an_operator_does_not_say_is_the_files() {
        let b = domain("b.test");
        let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let file = PeerOverride {
            hold: Some(true),
            addresses: Some(vec![address("10.0.0.1:7443")]),
            pins: Some(vec![Pin([7; 32])]),
            limits: Some(PeerLimitsOverride { streams_max: Some(9), claims_per_hour_max: Some(8), ..Default::default() }),
            ..PeerOverride::default()
        };
        let said = PeerOverride {
            addresses: Some(vec![]),
            exempt: Some(vec!["10.1.0.0/16".parse().expect("a network")]),
            limits: Some(PeerLimitsOverride { streams_max: Some(3), ..Default::default() }),
            reason: Some("moving".to_owned()),
            ..PeerOverride::default()
        };
        let only_file = policies(Mode::Open, file.clone(), PeerOverride::default());
        let (before, both) = (only_file.of(&b), policies(Mode::Open, file, said).of(&b));
        assert_eq!((before.addresses.len(), both.addresses.len()), (1, 0), "none is said, too");
        assert_eq!((before.limits.streams_max, both.limits.streams_max, both.limits.claims_per_hour_max), (9, 3, 8));
        assert_eq!((both.held, both.trust.pins.len(), both.exempt.len()), (true, 1, 1));
        assert_eq!((before.closure_text().as_str(), before.closure()), ("the configuration holds it", Some(Closure::Held)));
        assert_eq!(both.closure_text(), "the configuration holds it: moving");
        assert_eq!((before.overridden.is_some(), both.overridden.is_some(), both.configured), (false, true, true));
        let may_dial = |policies: &PeerPolicies, text: &str| {
            policies.address_policy(&AddressPolicy::default()).check(&b, text.parse().expect("an address")).is_ok()
        };
        assert!(may_dial(&only_file, "10.0.0.1") && !may_dial(&only_file, "10.0.0.2"));
        // Denied weighs more than held.
        let denied = PeerOverride { hold: Some(true), ..access(Some(Access::Deny)) };
        let denied = policies(Mode::Open, PeerOverride::default(), denied).of(&b);
        assert_eq!(denied.closure(), Some(Closure::Denied(Denial::Operator)));
    }

    #[test]
    fn an_override_that_says_nothing_is_none_and_what_could_not_work_is_refused() {
        let b = domain("b.test");
        let reason = PeerOverride { reason: Some("why".to_owned()), ..PeerOverride::default() };
        let no_limit = PeerOverride { limits: Some(PeerLimitsOverride::default()), ..reason.clone() };
        for said in [PeerOverride::default(), reason, no_limit] {
            assert!(said.is_empty());
            assert_eq!(PeerPolicies::default().with_override(&b, said).overrides(), 0);
        }
        let none = PeerLimitsOverride { requests_per_second_max: Some(0), ..Default::default() };
        let many = vec!["10.0.0.1:1".parse().expect("an address"); DIAL_ADDRESSES_MAX + 1];
        for (said, why) in [
            (PeerOverride { limits: Some(none), ..Default::default() }, "requests_per_second_max of 0"),
            (PeerOverride { addresses: Some(many), ..Default::default() }, "addresses"),
            (PeerOverride { pins: Some(vec![Pin([1; 32]); 65]), ..Default::default() }, "pins"),
            (PeerOverride { reason: Some("x".repeat(REASON_BYTES_MAX + 1)), ..Default::default() }, "reason"),
        ] {
            assert!(said.check().expect_err(why).contains(why));
        }
    }

    fn any_override() -> impl Strategy<Value = PeerOverride> {
        let access = prop::option::of(prop::sample::select(vec![Access::Allow, Access::Deny]));
        let limits = prop::option::of((prop::option::of(1u32..9), prop::option::of(1u32..9)).prop_map(|(streams, claims)| {
            PeerLimitsOverride { streams_max: streams, claims_per_hour_max: claims, ..Default::default() }
        }));
        let addresses = prop::option::of(prop::collection::vec((1u8..9).prop_map(|n| ([10, 0, 0, n], 7443).into()), 0..3));
        let pins = prop::option::of(prop::collection::vec((0u8..9).prop_map(|n| Pin([n; 32])), 0..3));
        let rest = (prop::option::of(any::<bool>()), prop::option::of(any::<bool>()), prop::option::of("[a-z ]{0,9}"));
        (access, limits, addresses, pins, rest).prop_map(|(access, limits, addresses, pins, (hold, wildcard, reason))| {
            PeerOverride { access, hold, reason, addresses, exempt: None, pins, wildcard, limits }
        })
    }

    proptest! {
        #[test]
        fn an_override_wins_where_it_speaks_and_nowhere_else(file in any_override(), said in any_override()) {
            let b = domain("b.test");
            let without = policies(Mode::AllowList, file.clone(), PeerOverride::default());
            let with = policies(Mode::AllowList, file, said.clone());
            let (before, after) = (without.of(&b), with.of(&b));
            prop_assert_eq!(after.held, said.hold.unwrap_or(before.held));
            prop_assert_eq!(&after.addresses, said.addresses.as_ref().unwrap_or(&before.addresses));
            prop_assert_eq!(&after.trust.pins, said.pins.as_ref().unwrap_or(&before.trust.pins));
            prop_assert_eq!(after.trust.wildcard, said.wildcard.unwrap_or(before.trust.wildcard));
            prop_assert_eq!(after.limits, said.limits.unwrap_or_default().over(before.limits));
            match said.access {
                None => prop_assert_eq!(after.denied, before.denied),
                Some(Access::Allow) => prop_assert_eq!(after.denied, None),
                Some(Access::Deny) => prop_assert_eq!(after.denied, Some(Denial::Operator)),
            }
            // To take it back is to be as before; text and back is the same.
            prop_assert_eq!(with.with_override(&b, PeerOverride::default()).of(&b), before);
            let text = encode_override(&said).expect("text");
            prop_assert_eq!(decode_override(&b, &text).expect("readable"), said);
        }
    }
}

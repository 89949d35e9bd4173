//! [`OwnHello`]: what this node says in `hello`, and how it judges a peer's (X7; *Versions* in `docs/protocol.md`).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::base::limits::{
    CLOCK_DIFFERENCE_WARN, CLOCKS_REMEMBERED_MAX, FRAME_BYTES_MAX, LANE_BATCH_FRAMES_MAX, VERSIONS_SHOWN_MAX,
};
use crate::base::{Domain, UnixMillis};
use crate::federation::{Greeting, Hello};
use crate::transport::CloseCode;
use crate::wire::peer::{
    Hello as HelloFrame, HelloExtension, PROTOCOL_VERSIONS, PeerLimits, PeerRequest, PeerResponse, ProtocolVersion,
};
use crate::wire::{decode, encode};

/// Our side of every `hello`, in both roles.
pub struct OwnHello {
    domain: Domain,
    versions: Vec<ProtocolVersion>,
    extensions: Vec<HelloExtension>,
    /// The peers whose clocks are known to be off, so that the log says it once.
    off: Mutex<HashSet<Domain>>,
}

impl OwnHello {
    /// The `hello` of the node of `domain`.
    pub fn new(domain: Domain) -> Self {
        Self::speaking(domain, PROTOCOL_VERSIONS.to_vec(), Vec::new())
    }

    /// The `hello` of a node that speaks other versions: of a later one, as others will meet it.
    pub fn speaking(domain: Domain, versions: Vec<ProtocolVersion>, extensions: Vec<HelloExtension>) -> Self {
        Self { domain, versions, extensions, off: Mutex::default() }
    }

    pub(super) fn frame(&self) -> HelloFrame {
        HelloFrame {
            domain: self.domain.as_bytes().into(),
            versions: self.versions.clone().into(),
            limits: PeerLimits { frame_bytes_max: FRAME_BYTES_MAX as u32, lane_frames_max: LANE_BATCH_FRAMES_MAX as u32 },
            server_time_ms: UnixMillis::now().0,
            extensions: self.extensions.clone().into(),
        }
    }

    /// The `hello` must name the authenticated domain, and there must be a version in common. Extensions of types that are not
    /// known are passed over.
    pub(super) fn judge(&self, hello: &HelloFrame, peer: &Domain) -> Result<Greeting, (CloseCode, String)> {
        if hello.domain[..] != *peer.as_bytes() {
            return Err((CloseCode::WrongDomain, format!("it names another domain than {peer}")));
        }
        let Some(version) = ProtocolVersion::in_common(&self.versions, &hello.versions) else {
            let (own, ours, theirs) = (&self.domain, list(&self.versions), list(&hello.versions));
            let reason = format!("no protocol version in common: {own} speaks {ours}, {peer} speaks {theirs}");
            return Err((CloseCode::NoVersion, reason));
        };
        let server_time = UnixMillis(hello.server_time_ms);
        self.note_clock(peer, server_time, UnixMillis::now());
        Ok(Greeting { version, versions: hello.versions.to_vec(), server_time })
    }

    /// Warns once of a peer whose clock is far from ours, and again when it has been right in between. Returns whether it did.
    fn note_clock(&self, peer: &Domain, theirs: UnixMillis, ours: UnixMillis) -> bool {
        let is_off = theirs.distance(ours) > CLOCK_DIFFERENCE_WARN;
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_off {
            off.remove(peer);
            return false;
        }
        if off.len() >= CLOCKS_REMEMBERED_MAX && !off.contains(peer) {
            off.clear();
        }
        if !off.insert(peer.clone()) {
            return false;
        }
        let (seconds, which) = (theirs.distance(ours).as_secs(), if theirs > ours { "ahead of" } else { "behind" });
        tracing::warn!(
            %peer,
            "its clock is {seconds} s {which} ours: requests that are more than five minutes off are refused; set both by NTP"
        );
        true
    }
}

impl Hello for OwnHello {
    fn ours(&self) -> Vec<u8> {
        encode(&PeerRequest::Hello(self.frame()))
    }

    fn check(&self, peer: &Domain, theirs: &[u8]) -> Result<Greeting, (CloseCode, String)> {
        match decode(theirs) {
            Ok(PeerResponse::Hello(hello)) => self.judge(&hello, peer),
            _ => Err((CloseCode::HelloRefused, "it is not a hello".to_owned())),
        }
    }
}

/// The versions, for people.
fn list(versions: &[ProtocolVersion]) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    versions.iter().take(VERSIONS_SHOWN_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn version(major: u8, minor: u8) -> ProtocolVersion {
        ProtocolVersion { major, minor }
    }

    fn domain(name: &str) -> Domain {
        name.parse().expect("a domain")
    }

    #[test]
    fn versions_are_agreed_on_or_named() {
        let (a, b) = (domain("a.test"), domain("b.test"));
        let older = OwnHello::new(a.clone());
        let extension = HelloExtension { extension_type: 7, data: b"later".as_slice().into() };
        let newer = OwnHello::speaking(b.clone(), vec![version(1, 1), version(1, 0)], vec![extension]);
        assert_eq!(older.judge(&newer.frame(), &b).expect("in common").version, version(1, 0));
        assert_eq!(newer.judge(&older.frame(), &a).expect("in common").version, version(1, 0));
        assert_eq!(
            newer.judge(&HelloFrame { domain: a.as_bytes().into(), ..newer.frame() }, &a).expect("itself").version,
            version(1, 1)
        );
        let strange = OwnHello::speaking(b.clone(), vec![version(2, 0), version(1, 9)], vec![]);
        let (code, reason) = older.judge(&strange.frame(), &b).expect_err("none in common");
        assert_eq!(code, CloseCode::NoVersion);
        assert_eq!(reason, "no protocol version in common: a.test speaks 1.0, b.test speaks 2.0, 1.9");
        let (code, _) = older.judge(&newer.frame(), &a).expect_err("another domain");
        assert_eq!(code, CloseCode::WrongDomain);
    }

    #[test]
    fn a_clock_that_is_off_is_said_once() {
        let (hello, b, now) = (OwnHello::new(domain("a.test")), domain("b.test"), UnixMillis(1_900_000_000_000));
        let hour = Duration::from_secs(3_600);
        assert!(!hello.note_clock(&b, now.plus(CLOCK_DIFFERENCE_WARN), now), "still good");
        assert!(hello.note_clock(&b, now.plus(hour), now) && !hello.note_clock(&b, now.minus(hour), now));
        assert!(hello.note_clock(&domain("c.test"), now.minus(hour), now), "of each peer");
        assert!(!hello.note_clock(&b, now, now) && hello.note_clock(&b, now.minus(hour), now), "again when it was good");
    }
}

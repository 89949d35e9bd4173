//! What the node of one other domain may use up here, whoever of its users asks.

use serde::{Deserialize, Serialize};

/// What one peer may use up. What holds for every peer that nothing else is said of comes from
/// [`Limits::per_peer`](super::Limits::per_peer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLimits {
    /// Requests a second, in the long run; ten times as many at once. A request with lane frames is one.
    pub requests_per_second_max: u32,
    /// Octets of its requests a second, in the long run; ten times as many at once.
    pub bytes_per_second_max: u32,
    /// Streams at once, on all its connections together.
    pub streams_max: u32,
    /// Connections that it opens in a minute.
    pub handshakes_per_minute_max: u32,
    /// KeyPackage claims of its users together in an hour.
    pub claims_per_hour_max: u32,
}

/// What differs from the limits of every peer; what is `None` does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerLimitsOverride {
    /// See [`PeerLimits::requests_per_second_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second_max: Option<u32>,
    /// See [`PeerLimits::bytes_per_second_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u32>,
    /// See [`PeerLimits::streams_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u32>,
    /// See [`PeerLimits::handshakes_per_minute_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshakes_per_minute_max: Option<u32>,
    /// See [`PeerLimits::claims_per_hour_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims_per_hour_max: Option<u32>,
}

impl PeerLimitsOverride {
    /// The limits that hold when `below` are those that this one does not speak of.
    pub fn over(&self, below: PeerLimits) -> PeerLimits {
        PeerLimits {
            requests_per_second_max: self.requests_per_second_max.unwrap_or(below.requests_per_second_max),
            bytes_per_second_max: self.bytes_per_second_max.unwrap_or(below.bytes_per_second_max),
            streams_max: self.streams_max.unwrap_or(below.streams_max),
            handshakes_per_minute_max: self.handshakes_per_minute_max.unwrap_or(below.handshakes_per_minute_max),
            claims_per_hour_max: self.claims_per_hour_max.unwrap_or(below.claims_per_hour_max),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The name of a limit that is 0: it would forbid what only denying the peer should.
    pub fn forbidding(&self) -> Option<&'static str> {
        let all = [
            ("requests_per_second_max", self.requests_per_second_max),
            ("bytes_per_second_max", self.bytes_per_second_max),
            ("streams_max", self.streams_max),
            ("handshakes_per_minute_max", self.handshakes_per_minute_max),
            ("claims_per_hour_max", self.claims_per_hour_max),
        ];
        all.into_iter().find(|(_, value)| *value == Some(0)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    #[test]
    fn an_override_changes_what_it_names_and_forbids_nothing() {
        let every = Limits::default().per_peer();
        assert_eq!(PeerLimitsOverride::default().over(every), every);
        let named = PeerLimitsOverride { streams_max: Some(3), ..PeerLimitsOverride::default() };
        assert_eq!(named.over(every), PeerLimits { streams_max: 3, ..every });
        assert_eq!((named.forbidding(), named.is_empty()), (None, false));
        let none = PeerLimitsOverride { bytes_per_second_max: Some(0), ..named };
        assert_eq!(none.forbidding(), Some("bytes_per_second_max"));
    }
}

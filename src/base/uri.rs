//! The `mimi://` names of users, clients and groups (see *Names* in `docs/protocol.md`).

use std::fmt;
use std::str::FromStr;

use super::Domain;
use super::bytes::hex;

/// The longest user, device or group name in a URI, in octets.
pub const SEGMENT_LENGTH_MAX: usize = 64;

/// Why a text is not one of the `mimi://` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid name: want {0}, each name of a-z, 0-9, '-', '_' and '.', at most {SEGMENT_LENGTH_MAX} octets")]
pub struct InvalidUri(&'static str);

/// Names of users, devices and groups: `[a-z0-9._-]`, 1–64 octets, so that every name has one spelling.
fn segment_is_valid(segment: &str) -> bool {
    (1..=SEGMENT_LENGTH_MAX).contains(&segment.len())
        && segment.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-_.".contains(&octet))
}

/// Splits `mimi://<domain>/<kind>/<rest>`; the domain is checked, the rest is not.
fn split<'a>(text: &'a str, kind: &str) -> Option<(Domain, &'a str)> {
    let (domain, path) = text.strip_prefix("mimi://")?.split_once('/')?;
    Some((domain.parse().ok()?, path.strip_prefix(kind)?.strip_prefix('/')?))
}

macro_rules! text_forms {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidUri;

            fn try_from(text: String) -> Result<Self, InvalidUri> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl $name {
            /// Reads the name from wire octets.
            pub fn from_bytes(octets: &[u8]) -> Result<Self, InvalidUri> {
                std::str::from_utf8(octets).map_err(|_| InvalidUri(Self::FORM))?.parse()
            }

            /// The name's octets, as they stand in the wire structs.
            pub fn to_bytes(&self) -> Vec<u8> {
                self.to_string().into_bytes()
            }
        }
    };
}

/// A user: `mimi://a.example/u/alice`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserUri {
    domain: Domain,
    name: String,
}

impl UserUri {
    const FORM: &'static str = "mimi://DOMAIN/u/USER";

    /// The user `name` of `domain`.
    pub fn new(domain: &Domain, name: &str) -> Result<Self, InvalidUri> {
        if !segment_is_valid(name) {
            return Err(InvalidUri(Self::FORM));
        }
        Ok(Self { domain: domain.clone(), name: name.to_owned() })
    }

    /// The user's home domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The name within the domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's client `device`.
    pub fn client(&self, device: &str) -> Result<ClientUri, InvalidUri> {
        if !segment_is_valid(device) {
            return Err(InvalidUri(ClientUri::FORM));
        }
        Ok(ClientUri { user: self.clone(), device: device.to_owned() })
    }
}

impl FromStr for UserUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let (domain, name) = split(text, "u").ok_or(InvalidUri(Self::FORM))?;
        Self::new(&domain, name)
    }
}

impl fmt::Display for UserUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mimi://{}/u/{}", self.domain, self.name)
    }
}

text_forms!(UserUri);

/// A client (one device of a user): `mimi://a.example/d/alice/phone`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientUri {
    user: UserUri,
    device: String,
}

impl ClientUri {
    const FORM: &'static str = "mimi://DOMAIN/d/USER/DEVICE";

    /// The user whose client this is.
    pub fn user(&self) -> &UserUri {
        &self.user
    }

    /// The client's home domain.
    pub fn domain(&self) -> &Domain {
        &self.user.domain
    }

    /// The device's name within the user's account.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl FromStr for ClientUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let invalid = InvalidUri(Self::FORM);
        let (domain, path) = split(text, "d").ok_or(invalid)?;
        let (user, device) = path.split_once('/').ok_or(invalid)?;
        UserUri::new(&domain, user).and_then(|user| user.client(device)).map_err(|_| invalid)
    }
}

impl fmt::Display for ClientUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mimi://{}/d/{}/{}", self.user.domain, self.user.name, self.device)
    }
}

text_forms!(ClientUri);

/// A group: `mimi://a.example/g/<unguessable id>`. Its octets are the MLS group id and its host is the hub.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupUri {
    hub: Domain,
    id: String,
}

impl GroupUri {
    const FORM: &'static str = "mimi://DOMAIN/g/ID";

    /// A new group hosted by `hub`; `random` must be fresh random octets, so that the id cannot be guessed.
    pub fn new(hub: &Domain, random: &[u8; 16]) -> Self {
        Self { hub: hub.clone(), id: hex(random) }
    }

    /// The domain whose Delivery Service hosts the group.
    pub fn hub(&self) -> &Domain {
        &self.hub
    }
}

impl FromStr for GroupUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        match split(text, "g") {
            Some((hub, id)) if segment_is_valid(id) => Ok(Self { hub, id: id.to_owned() }),
            _ => Err(InvalidUri(Self::FORM)),
        }
    }
}

impl fmt::Display for GroupUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mimi://{}/g/{}", self.hub, self.id)
    }
}

text_forms!(GroupUri);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_have_one_spelling() {
        assert_eq!("mimi://a.test/u/alice".parse::<UserUri>().map(|uri| uri.to_string()), Ok("mimi://a.test/u/alice".into()));
        let client: ClientUri = "mimi://a.test/d/alice/phone".parse().expect("a client");
        assert_eq!((client.user().to_string().as_str(), client.device()), ("mimi://a.test/u/alice", "phone"));
        assert_eq!(client.to_string(), "mimi://a.test/d/alice/phone");
        let group: GroupUri = "mimi://a.test/g/00ff".parse().expect("a group");
        assert_eq!(group.hub().as_str(), "a.test");
        for bad in [
            "mimi://a.test/u/",
            "mimi://a.test/u/Alice",
            "mimi://a.test/u/a/b",
            "MIMI://a.test/u/a",
            "mimi://A.test/u/a",
            "mimi://a.test/d/a",
        ] {
            assert!(bad.parse::<UserUri>().is_err(), "{bad}");
        }
        for bad in ["mimi://a.test/d/alice", "mimi://a.test/d/alice/", "mimi://a.test/d/alice/x/y", "mimi://a.test/u/alice"] {
            assert!(bad.parse::<ClientUri>().is_err(), "{bad}");
        }
        assert!("mimi://a.test/g/".parse::<GroupUri>().is_err());
    }
}

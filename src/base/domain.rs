//! [`Domain`]: the DNS name that a node serves and that a peer authenticates as (C1, C3).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A DNS name in lower-case A-labels (RFC 1123 host name syntax), 1–253 octets, at least two labels, without a trailing dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(Arc<str>);

/// Why a text is not a [`Domain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a domain name: want lower-case letters, digits and hyphens in at least two labels, such as a.example")]
pub struct InvalidDomain;

impl Domain {
    /// The longest name DNS can carry in this form, in octets.
    pub const LENGTH_MAX: usize = 253;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's octets, as they stand in the wire structs.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Reads a domain from wire octets.
    pub fn from_bytes(octets: &[u8]) -> Result<Self, InvalidDomain> {
        std::str::from_utf8(octets).map_err(|_| InvalidDomain)?.parse()
    }
}

impl FromStr for Domain {
    type Err = InvalidDomain;

    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let label_is_valid = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let valid = text.len() <= Self::LENGTH_MAX && text.contains('.') && text.split('.').all(label_is_valid)
            // An address in dotted form is no domain.
            && !text.bytes().all(|octet| octet.is_ascii_digit() || octet == b'.');
        if valid { Ok(Self(text.into())) } else { Err(InvalidDomain) }
    }
}

impl TryFrom<String> for Domain {
    type Error = InvalidDomain;

    fn try_from(text: String) -> Result<Self, InvalidDomain> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_lower_case_a_labels_and_nothing_else() {
        for good in ["a.test", "xn--bcher-kva.example", "a-1.b.c"] {
            assert_eq!(good.parse::<Domain>().map(|domain| domain.to_string()), Ok(good.to_owned()));
        }
        let long = format!("{}.test", "a".repeat(64));
        let too_long = ["abcdefgh"; 29].join(".");
        for bad in [
            "", "test", "A.test", "a.test.", ".a.test", "a..test", "-a.test", "a-.test", "a_b.test", "10.0.0.1", "ä.test", &long,
            &too_long,
        ] {
            assert_eq!(bad.parse::<Domain>(), Err(InvalidDomain), "{bad:?}");
        }
    }
}

//! An invitation to enrol: one line a person can paste (see *Numbers* in `docs/protocol.md`).

use std::fmt;
use std::str::FromStr;

use crate::base::Domain;
use crate::base::bytes::{hex, unhex};

const PREFIX: &str = "mimi-invite";

/// `mimi-invite:<domain>:<token>:<hash>`, token and hash in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The domain that invites.
    pub domain: Domain,
    /// One-time token; the node knows which user it is for.
    pub token: [u8; 16],
    /// SHA-256 of the SubjectPublicKeyInfo of the CA that issued the node's TLS certificate: all that the new client trusts.
    pub tls_ca_spki_hash: [u8; 32],
}

/// The text is not an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an invitation: want the whole line {PREFIX}:DOMAIN:TOKEN:HASH as `mimi-node users invite` printed it")]
pub struct InvalidInvitation;

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}:{}", self.domain, hex(&self.token), hex(&self.tls_ca_spki_hash))
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:…", self.domain)
    }
}

impl FromStr for Invitation {
    type Err = InvalidInvitation;

    fn from_str(text: &str) -> Result<Self, InvalidInvitation> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let [PREFIX, domain, token, hash] = parts[..] else { return Err(InvalidInvitation) };
        let octets = |text| unhex(text).ok_or(InvalidInvitation);
        Ok(Self {
            domain: domain.parse().map_err(|_| InvalidInvitation)?,
            token: octets(token)?.try_into().map_err(|_| InvalidInvitation)?,
            tls_ca_spki_hash: octets(hash)?.try_into().map_err(|_| InvalidInvitation)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_one_line_and_debug_keeps_its_token() {
        let invitation = Invitation { domain: "a.test".parse().expect("a domain"), token: [7; 16], tls_ca_spki_hash: [9; 32] };
        let line = invitation.to_string();
        assert_eq!(format!("  {line}\n").parse(), Ok(invitation.clone()));
        assert!(!format!("{invitation:?}").contains("0707"));
        for bad in ["", "mimi-invite:a.test", &line[1..], &format!("{line}00"), &format!("{line}:x")] {
            assert_eq!(bad.parse::<Invitation>(), Err(InvalidInvitation), "{bad}");
        }
    }
}

//! Requests about a user's account at its own domain (S20, X1, X5, X6).

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};

/// A request about an account, signed by the user key.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct AccountsMessage {
    /// The user's certificate (DER) in a list of one; empty for `enrol`, whose key is in the request.
    pub certificates: List<Opaque>,
    /// What is asked.
    pub request: AccountsRequest,
}

/// The operations on an account.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum AccountsRequest {
    /// A user certificate for an invited user.
    #[tls_codec(discriminant = 0)]
    Enrol(Enrol),
    /// A client's key is no longer good (X1).
    RevokeClient(RevokeClient),
    /// The account goes away.
    DeleteUser,
    /// Refuse claims and Welcomes from a user or domain (X5).
    Block(BlockedName),
    /// Take a block back (X5).
    Unblock(BlockedName),
    /// The hubs that deliver to this account (X6).
    Hubs,
    /// The user's certificate anew, for the same key, under the AS root that issues now (X2).
    Renew,
}

/// `enrol`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Enrol {
    /// The invitation's one-time token.
    pub token: Opaque,
    /// PKCS#10 request (DER) for the new user key, signed by it.
    pub certificate_request: Opaque,
}

/// `revoke_client`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RevokeClient {
    /// The client's URI.
    pub client: Opaque,
}

/// `block` and `unblock`: a user URI or a domain.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct BlockedName {
    /// A user's URI, or a domain.
    pub name: Opaque,
}

/// Answer to `enrol`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Enrolled {
    /// The user's URI.
    pub user: Opaque,
    /// The user certificate (DER).
    pub certificate: Opaque,
}

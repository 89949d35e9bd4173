//! The envelope of every client request: where it goes, who signed it, and what it asks (S1, S3, S16).

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::accounts::AccountsMessage;
use super::codec::{Opaque, encode};
use super::ds::DsMessage;
use super::info::InfoRequest;
use super::keys::KeysMessage;
use super::qs::QsMessage;
use crate::base::crypto::{SigningKey, sha256, verify_with_label};
use crate::base::ids::RequestId;
use crate::base::{Domain, UnixMillis};

/// `ClientRequest`: signed content, and the signature over it.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientRequest {
    /// What is signed.
    pub content: Content,
    /// SignWithLabel(key, "MIMI <service>", content) by the key that the sender names; empty for `info`.
    pub signature: Opaque,
}

/// The signed part of a [`ClientRequest`]. The draft's DSMessage with version, destination, request id and time bound in (S3).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Content {
    /// [`super::VERSION`].
    pub version: u16,
    /// The domain that must answer; the home node proxies if it is another (S16).
    pub destination: Opaque,
    /// Random; a retry repeats it.
    pub request_id: RequestId,
    /// When the sender made this try, in milliseconds since 1970.
    pub issued_at_ms: u64,
    /// Sender and body, by service.
    pub service: Service,
}

/// Who asks what of which service.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Service {
    /// Delivery Service.
    #[tls_codec(discriminant = 0)]
    Ds(DsMessage),
    /// Queueing Service.
    Qs(QsMessage),
    /// KeyPackages.
    Keys(KeysMessage),
    /// Accounts (Authentication Service).
    Accounts(AccountsMessage),
    /// What a domain publishes about itself.
    Info(InfoRequest),
}

impl Service {
    /// The label of the request's signature; distinct per service, so that no signature serves twice.
    fn label(&self) -> &'static str {
        match self {
            Self::Ds(_) => "MIMI ds",
            Self::Qs(_) => "MIMI qs",
            Self::Keys(_) => "MIMI keys",
            Self::Accounts(_) => "MIMI accounts",
            Self::Info(_) => "MIMI info",
        }
    }
}

impl Content {
    /// A request made now for `destination`.
    pub fn new(destination: &Domain, request_id: RequestId, now: UnixMillis, service: Service) -> Self {
        Self { version: super::VERSION, destination: destination.as_bytes().into(), request_id, issued_at_ms: now.0, service }
    }

    /// Signs the content with the key that its sender names.
    pub fn sign(self, key: &SigningKey) -> ClientRequest {
        let signature = key.sign_with_label(self.service.label(), &encode(&self)).into();
        ClientRequest { content: self, signature }
    }

    /// The content without a signature, for `info`.
    pub fn unsigned(self) -> ClientRequest {
        ClientRequest { content: self, signature: Opaque::default() }
    }

    /// Digest of all but issued_at: what makes two requests with one id the same request (*Idempotency*).
    pub fn digest(&self) -> [u8; 32] {
        let mut timeless = self.clone();
        timeless.issued_at_ms = 0;
        sha256(&encode(&timeless))
    }
}

impl ClientRequest {
    /// Whether the signature is `public_key`'s (Ed25519, 32 octets) over the content.
    #[must_use]
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        verify_with_label(public_key, self.content.service.label(), &encode(&self.content), &self.signature)
    }
}

//! QUIC between nodes and from clients: endpoints, TLS identity, frames, the accept loop, and finding a domain's nodes in DNS.
//!
//! | file | is |
//! |---|---|
//! | [`frame`] | length-prefixed frames on a stream, bounded in size and time |
//! | [`codes`] | the one table of QUIC application error codes |
//! | [`tls`] | this node's certificate and the four TLS configurations made from it |
//! | [`trust`] | whose certificates are believed, and for which peer: CAs, pins, revocation lists |
//! | [`verify`] | what a certificate must be, by role; the names it stands for |
//! | [`inspect`] | what a peer presented, refused or not, for a diagnosis |
//! | [`knock`] | whether UDP gets through, for a diagnosis |
//! | [`sessions`] | the connections of peers whose certificates were accepted, to judge them anew |
//! | [`endpoint`] | UDP sockets and QUIC limits, set explicitly; stateless resets that survive a crash |
//! | [`accept`] | the accept loop of both ports |
//! | [`discovery`] | SRV records: domain → targets → addresses |
//! | [`addresses`] | which addresses are dialled for other domains |
//!
//! Frames are opaque here; what they mean is `wire`'s business.

pub mod accept;
pub mod addresses;
pub mod codes;
pub mod discovery;
pub mod endpoint;
pub mod frame;
pub mod inspect;
pub mod knock;
pub mod sessions;
pub mod tls;
pub mod trust;
pub mod verify;

#[cfg(test)]
pub(crate) mod testing;

pub use accept::{Accepted, ConnectionHandler, PortCounts, Turned};
pub use addresses::{AddressPolicy, Network};
pub use codes::CloseCode;
pub use discovery::{
    Discovered, DiscoveryError, Examination, Lookup, LookupCounts, Origin, Resolver, ResolverSettings, Service, Target,
};
pub use endpoint::EndpointSecret;
pub use frame::FrameError;
pub use inspect::{CertificateFault, Inspection, Presented};
pub use sessions::Session;
pub use tls::{ClientIdentity, NodeTls};
pub use trust::{PeerTrust, Pin, Trust, TrustSources};

//! X.509: making and checking certificates. Two hierarchies that never meet:
//!
//! - **Authentication Service** (S20, R8), Ed25519: AS root → user (CA, path length 0, SAN URI = the user) → client (SAN URI =
//!   the client). [`issue`] makes them, [`chain`] checks them.
//! - **TLS** (C3), ECDSA P-256 where this node makes them: TLS CA → node. [`tls`] makes them and matches their names.
//!
//! Pure: no input or output; `now` is an argument.

pub mod chain;
pub mod issue;
pub mod pem;
pub mod revoked;
pub mod rollover;
pub mod summary;
pub mod tls;
mod x509;

pub use chain::{AsRoots, ChainError, ClientIdentity, UserIdentity};
pub use issue::{AsRoot, IssueError};
pub use revoked::{RevokedKeys, key_hash};
pub use summary::CertificateSummary;
pub use tls::crl::{Crl, Revoked};
pub use tls::{ExtendedKeyUsage, TlsCa, TlsCertificate, TlsCertificateOptions};

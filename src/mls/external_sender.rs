//! The Delivery Service as an external sender of its groups (S12, RFC 9420 §12.1.8.1).

use openmls::prelude::{ExternalSender, GroupContext, SignaturePublicKey};
use tls_codec::{Deserialize as _, Serialize as _};

use super::credential::x509;
use crate::base::fault::{Context as _, Fault};

/// The encoded ExternalSender of a DS with this key (Ed25519, 32 octets) and X.509 chain (DER).
pub fn encode_external_sender(public_key: &[u8], chain: &[Vec<u8>]) -> Result<Vec<u8>, Fault> {
    ExternalSender::new(SignaturePublicKey::from(public_key), x509(chain))
        .tls_serialize_detached()
        .context("could not encode the DS's external sender")
}

/// Whether `context` names the encoded `external_sender` among its external_senders. ExternalSender has no getters, so whole
/// values are compared.
pub(super) fn context_names(context: &GroupContext, external_sender: &[u8]) -> bool {
    let Ok(ours) = ExternalSender::tls_deserialize_exact(external_sender) else { return false };
    context.extensions().external_senders().is_some_and(|senders| senders.contains(&ours))
}

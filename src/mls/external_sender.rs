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

/// Where the encoded `external_sender` stands among the external_senders of `context`. ExternalSender has no getters, so whole
/// values are compared.
pub(super) fn position(context: &GroupContext, external_sender: &[u8]) -> Option<u32> {
    let ours = ExternalSender::tls_deserialize_exact(external_sender).ok()?;
    let position = context.extensions().external_senders()?.iter().position(|sender| *sender == ours)?;
    u32::try_from(position).ok()
}

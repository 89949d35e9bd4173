//! Sealing queue information to one's own QS: the hub sees octets only (S14, S15, X3).

use hpke_rs::{Hpke, HpkePublicKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;

use crate::base::{Domain, Fault};
use crate::wire::ds::ClientQueueConfig;
use crate::wire::encode;
use crate::wire::info::QsKey;
use crate::wire::qs::{QueueInformation, SealedQueueInformation};

/// HPKE `info` of sealed queue information.
const INFO: &[u8] = b"MIMI queue info";

/// Seals `information` to `key`, for a leaf of `domain`'s client.
pub(super) fn queue_config(domain: &Domain, key: &QsKey, information: &QueueInformation) -> Result<ClientQueueConfig, Fault> {
    let mut hpke =
        Hpke::<HpkeRustCrypto>::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm);
    let public_key = HpkePublicKey::new(key.public_key.to_vec());
    let (kem_output, ciphertext) = hpke
        .seal(&public_key, INFO, b"", &encode(information), None, None, None)
        .map_err(|error| Fault::new(format!("could not seal to the QS's key {}: {error:?}", key.key_id)))?;
    let sealed = SealedQueueInformation { key_id: key.key_id, kem_output: kem_output.into(), ciphertext: ciphertext.into() };
    Ok(ClientQueueConfig { qs_domain: domain.as_bytes().into(), client_queue_information: encode(&sealed).into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::QueueId;
    use crate::wire::decode;
    use crate::wire::qs::QueueBinding;

    #[test]
    fn only_the_qs_can_open_what_was_sealed_to_it() {
        let mut hpke =
            Hpke::<HpkeRustCrypto>::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm);
        let (private, public) = hpke.generate_key_pair().expect("a key pair").into_keys();
        let key = QsKey { key_id: 3, public_key: public.as_slice().into() };
        let binding = QueueBinding::Hub(b"b.test".as_slice().into());
        let information = QueueInformation { queue_id: QueueId([7; 16]), generation: 2, binding };
        let domain: Domain = "a.test".parse().expect("a domain");
        let config = queue_config(&domain, &key, &information).expect("seals");
        assert_eq!(&*config.qs_domain, b"a.test");
        let sealed: SealedQueueInformation = decode(&config.client_queue_information).expect("decodes");
        assert_eq!(sealed.key_id, 3);
        let opened = hpke.open(&sealed.kem_output, &private, INFO, b"", &sealed.ciphertext, None, None, None).expect("opens");
        assert_eq!(decode(&opened), Ok(information));
        let bad = QsKey { key_id: 0, public_key: vec![1, 2].into() };
        assert!(queue_config(&domain, &bad, &decode(&opened).expect("decodes")).is_err());
    }
}

//! What OpenMLS needs of its surroundings: crypto that only verifies (R10), a store that forgets, and one that is a snapshot.

use std::cell::RefCell;

use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::public_storage::PublicStorageProvider;
use openmls_traits::storage::{CURRENT_VERSION, traits};
use openmls_traits::types::{
    AeadType, Ciphersuite, CryptoError, ExporterSecret, HashType, HpkeCiphertext, HpkeConfig, HpkeKeyPair, KemOutput,
    SignatureScheme,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tls_codec::SecretVLBytes;

/// Hashes and verifies; refuses everything else, so that no code path of the server can decrypt or sign through MLS (R10).
pub(super) struct VerifyOnly;

const REFUSED: CryptoError = CryptoError::UnsupportedCiphersuite;

impl OpenMlsCrypto for VerifyOnly {
    fn supports(&self, ciphersuite: Ciphersuite) -> Result<(), CryptoError> {
        if u16::from(ciphersuite) == super::CIPHERSUITE { Ok(()) } else { Err(REFUSED) }
    }
    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        vec![Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519]
    }
    fn hash(&self, hash: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match hash {
            HashType::Sha2_256 => Ok(crate::base::crypto::sha256(data).to_vec()),
            _ => Err(REFUSED),
        }
    }
    fn verify_signature(&self, scheme: SignatureScheme, data: &[u8], key: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        use ring::signature::{ED25519, UnparsedPublicKey};
        match scheme {
            SignatureScheme::ED25519 => {
                UnparsedPublicKey::new(&ED25519, key).verify(data, signature).map_err(|_| CryptoError::InvalidSignature)
            }
            _ => Err(REFUSED),
        }
    }
    fn hkdf_extract(&self, _: HashType, _: &[u8], _: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        Err(REFUSED)
    }
    fn hmac(&self, _: HashType, _: &[u8], _: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        Err(REFUSED)
    }
    fn hkdf_expand(&self, _: HashType, _: &[u8], _: &[u8], _: usize) -> Result<SecretVLBytes, CryptoError> {
        Err(REFUSED)
    }
    fn aead_encrypt(&self, _: AeadType, _: &[u8], _: &[u8], _: &[u8], _: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Err(REFUSED)
    }
    fn aead_decrypt(&self, _: AeadType, _: &[u8], _: &[u8], _: &[u8], _: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Err(REFUSED)
    }
    fn signature_key_gen(&self, _: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        Err(REFUSED)
    }
    fn sign(&self, _: SignatureScheme, _: &[u8], _: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Err(REFUSED)
    }
    fn hpke_seal(&self, _: HpkeConfig, _: &[u8], _: &[u8], _: &[u8], _: &[u8]) -> Result<HpkeCiphertext, CryptoError> {
        Err(REFUSED)
    }
    fn hpke_open(&self, _: HpkeConfig, _: &HpkeCiphertext, _: &[u8], _: &[u8], _: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Err(REFUSED)
    }
    fn hpke_setup_sender_and_export(
        &self,
        _: HpkeConfig,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        Err(REFUSED)
    }
    fn hpke_setup_receiver_and_export(
        &self,
        _: HpkeConfig,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        Err(REFUSED)
    }
    fn derive_hpke_keypair(&self, _: HpkeConfig, _: &[u8]) -> Result<HpkeKeyPair, CryptoError> {
        Err(REFUSED)
    }
}

/// A stored value could not be written or read back.
#[derive(Debug, thiserror::Error)]
#[error("group state does not (de)serialise: {0}")]
pub(super) struct StoreError(#[from] postcard::Error);

/// The four entities of a public group, each serialised; the whole is one snapshot.
#[derive(Default, Serialize, Deserialize)]
struct Entities {
    tree: Option<Vec<u8>>,
    interim_transcript_hash: Option<Vec<u8>>,
    context: Option<Vec<u8>>,
    confirmation_tag: Option<Vec<u8>>,
}

/// A store for one group. With `keep` it is a snapshot to be written or read; without, it forgets every write: a group in
/// memory gets its durability from the log of staged commits, and a merge that cannot fail on storage cannot run ahead of disk.
pub(super) struct GroupStore {
    keep: bool,
    entities: RefCell<Entities>,
}

impl GroupStore {
    /// Forgets every write.
    pub(super) fn null() -> Self {
        Self { keep: false, entities: RefCell::default() }
    }

    /// Keeps what is written, for [`GroupStore::to_snapshot`].
    pub(super) fn recording() -> Self {
        Self { keep: true, entities: RefCell::default() }
    }

    /// Reads a snapshot back.
    pub(super) fn from_snapshot(octets: &[u8]) -> Result<Self, StoreError> {
        Ok(Self { keep: true, entities: RefCell::new(postcard::from_bytes(octets)?) })
    }

    /// What was written, as one record.
    pub(super) fn to_snapshot(&self) -> Result<Vec<u8>, StoreError> {
        Ok(postcard::to_stdvec(&*self.entities.borrow())?)
    }

    fn put<T: Serialize>(&self, slot: impl FnOnce(&mut Entities) -> &mut Option<Vec<u8>>, value: &T) -> Result<(), StoreError> {
        if self.keep {
            *slot(&mut self.entities.borrow_mut()) = Some(postcard::to_stdvec(value)?);
        }
        Ok(())
    }

    fn take<T: DeserializeOwned>(slot: &Option<Vec<u8>>) -> Result<Option<T>, StoreError> {
        Ok(slot.as_deref().map(postcard::from_bytes).transpose()?)
    }
}

impl PublicStorageProvider<CURRENT_VERSION> for GroupStore {
    type PublicError = StoreError;

    fn write_tree<G: traits::GroupId<CURRENT_VERSION>, T: traits::TreeSync<CURRENT_VERSION>>(
        &self,
        _: &G,
        tree: &T,
    ) -> Result<(), StoreError> {
        self.put(|entities| &mut entities.tree, tree)
    }
    fn write_interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>, T: traits::InterimTranscriptHash<CURRENT_VERSION>>(
        &self,
        _: &G,
        hash: &T,
    ) -> Result<(), StoreError> {
        self.put(|entities| &mut entities.interim_transcript_hash, hash)
    }
    fn write_context<G: traits::GroupId<CURRENT_VERSION>, T: traits::GroupContext<CURRENT_VERSION>>(
        &self,
        _: &G,
        context: &T,
    ) -> Result<(), StoreError> {
        self.put(|entities| &mut entities.context, context)
    }
    fn write_confirmation_tag<G: traits::GroupId<CURRENT_VERSION>, T: traits::ConfirmationTag<CURRENT_VERSION>>(
        &self,
        _: &G,
        tag: &T,
    ) -> Result<(), StoreError> {
        self.put(|entities| &mut entities.confirmation_tag, tag)
    }
    fn queue_proposal<
        G: traits::GroupId<CURRENT_VERSION>,
        R: traits::ProposalRef<CURRENT_VERSION>,
        P: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &G,
        _: &R,
        _: &P,
    ) -> Result<(), StoreError> {
        Ok(())
    }
    fn queued_proposals<
        G: traits::GroupId<CURRENT_VERSION>,
        R: traits::ProposalRef<CURRENT_VERSION>,
        P: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &G,
    ) -> Result<Vec<(R, P)>, StoreError> {
        Ok(Vec::new())
    }
    fn tree<G: traits::GroupId<CURRENT_VERSION>, T: traits::TreeSync<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, StoreError> {
        Self::take(&self.entities.borrow().tree)
    }
    fn group_context<G: traits::GroupId<CURRENT_VERSION>, T: traits::GroupContext<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, StoreError> {
        Self::take(&self.entities.borrow().context)
    }
    fn interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>, T: traits::InterimTranscriptHash<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, StoreError> {
        Self::take(&self.entities.borrow().interim_transcript_hash)
    }
    fn confirmation_tag<G: traits::GroupId<CURRENT_VERSION>, T: traits::ConfirmationTag<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, StoreError> {
        Self::take(&self.entities.borrow().confirmation_tag)
    }
    fn delete_tree<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Result<(), StoreError> {
        Ok(())
    }
    fn delete_confirmation_tag<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Result<(), StoreError> {
        Ok(())
    }
    fn delete_context<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Result<(), StoreError> {
        Ok(())
    }
    fn delete_interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Result<(), StoreError> {
        Ok(())
    }
    fn remove_proposal<G: traits::GroupId<CURRENT_VERSION>, R: traits::ProposalRef<CURRENT_VERSION>>(
        &self,
        _: &G,
        _: &R,
    ) -> Result<(), StoreError> {
        Ok(())
    }
    fn clear_proposal_queue<G: traits::GroupId<CURRENT_VERSION>, R: traits::ProposalRef<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<(), StoreError> {
        Ok(())
    }
}

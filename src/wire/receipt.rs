//! Receipts (X9): the hub's signed word that a Commit began an epoch. Two receipts for one epoch prove a fork.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{Opaque, encode};
use crate::base::crypto::{SigningKey, verify_with_label};

const LABEL: &str = "MIMI receipt";

/// `Receipt`: signed with the DS's ExternalSender key.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Receipt {
    /// What is signed.
    pub content: ReceiptContent,
    /// SignWithLabel(DS key, "MIMI receipt", content).
    pub signature: Opaque,
}

/// The signed part of a [`Receipt`].
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ReceiptContent {
    /// The group.
    pub group_id: Opaque,
    /// The epoch that the Commit began.
    pub epoch: u64,
    /// SHA-256 of the Commit's MLSMessage.
    pub commit_hash: [u8; 32],
}

impl ReceiptContent {
    /// Signs the receipt with the DS's key.
    pub fn sign(self, key: &SigningKey) -> Receipt {
        let signature = key.sign_with_label(LABEL, &encode(&self)).into();
        Receipt { content: self, signature }
    }
}

impl Receipt {
    /// Whether `public_key` (the DS's, Ed25519) signed this receipt.
    #[must_use]
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        verify_with_label(public_key, LABEL, &encode(&self.content), &self.signature)
    }
}

//! The domain's users, pure: invitation tokens. Certificates themselves are `identity`'s.

use crate::base::crypto::{random, sha256};

/// A fresh one-time token.
pub fn new_token() -> [u8; 16] {
    random()
}

/// What is kept of a token: who reads the database cannot enrol with it.
pub fn hash_token(token: &[u8]) -> [u8; 32] {
    sha256(token)
}

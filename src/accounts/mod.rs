//! The domain's users, pure: invitation tokens, and who may ask what about an account (S20, X1, X5, X6). Certificates themselves
//! are `identity`'s.

pub mod requests;

use crate::base::crypto::{random, sha256};

/// A fresh one-time token.
pub fn new_token() -> [u8; 16] {
    random()
}

/// What is kept of a token: who reads the database cannot enrol with it.
pub fn hash_token(token: &[u8]) -> [u8; 32] {
    sha256(token)
}

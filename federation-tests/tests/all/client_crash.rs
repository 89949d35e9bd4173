//! A client is killed.

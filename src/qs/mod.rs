//! qs

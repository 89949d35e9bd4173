//! Bad links.

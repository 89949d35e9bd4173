//! client
mod error;
mod history;
mod log;
mod mls;
mod seal;
mod state;

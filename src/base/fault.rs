//! [`Fault`]: something on our side failed. It is logged once, with its chain, and never told to a peer or client beyond the
//! code `internal`. What the *other* side did wrong is a `wire::error::Rejection` instead.

use std::error::Error;
use std::fmt;

/// A failure of this node (disk, network, an invariant): what was being done, and why it could not be.
#[derive(Debug)]
pub struct Fault {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fault {
    /// A fault with no underlying error. `what` is one plain sentence without a full stop.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// A fault caused by `source`.
    pub fn because(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        // The whole chain on one line: a fault is printed once, for a person.
        let mut source = self.source.as_deref().map(|source| source as &(dyn Error + 'static));
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Error for Fault {}

/// Turns any error into a [`Fault`] that says what was being done.
pub trait Context<T> {
    /// `what`: what was being done, as in "could not open the database".
    fn context(self, what: impl Into<String>) -> Result<T, Fault>;
    /// As [`Context::context`]; builds the text only on failure.
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, Fault> {
        self.map_err(|error| Fault::because(what, error))
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::because(what(), error))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl Into<String>) -> Result<T, Fault> {
        self.ok_or_else(|| Fault::new(what))
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.ok_or_else(|| Fault::new(what()))
    }
}

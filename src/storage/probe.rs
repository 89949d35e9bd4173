//! Whether the disk can be written.

use super::{Connection, Transaction};
use crate::base::UnixMillis;
use crate::base::fault::{Context as _, Fault};

/// Notes when it was tried, and nothing else: it shows that there is room, and a disk. What is written differs each time, because
/// SQLite leaves a page alone that would stay as it is.
pub struct TryWriting {
    /// When.
    pub now: UnixMillis,
}

impl Transaction for TryWriting {
    const NAME: &'static str = "try_writing";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('tried_writing_at_ms', $1) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(self.now.0.to_be_bytes().as_slice())
        .execute(connection)
        .await
        .context("could not write to the database")?;
        Ok(())
    }
}

//! Table `settings`: the domain this database belongs to, and the node's own keys.

use sqlx::Row as _;

use super::{Connection, Storage, Transaction};
use crate::base::fault::{Context as _, Fault};

/// Writes settings that must not be there yet: the first write of a database.
pub struct InitialSettings(pub Vec<(&'static str, Vec<u8>)>);

impl Transaction for InitialSettings {
    const NAME: &'static str = "initial_settings";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        for (name, value) in &self.0 {
            sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2)")
                .bind(*name)
                .bind(value)
                .execute(&mut *connection)
                .await
                .with_context(|| format!("could not write the setting {name}"))?;
        }
        Ok(())
    }
}

impl Storage {
    /// A setting's value; `None` when it was never written.
    pub async fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(self.readers())
            .await
            .with_context(|| format!("could not read the setting {name}"))?;
        row.map(|row| row.try_get("value")).transpose().with_context(|| format!("the setting {name} is not readable"))
    }
}

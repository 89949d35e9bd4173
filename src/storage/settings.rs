//! Table `settings`: the domain this database belongs to, and the node's own keys.

use sqlx::Row as _;

use super::roots::add_root;
use super::{Connection, Storage, Transaction};
use crate::base::UnixMillis;
use crate::base::fault::{Context as _, Fault};
use crate::base::secret::Secret;

/// Writes what must not be there yet: the first write of a database.
pub struct InitialSettings {
    /// Settings by name.
    pub settings: Vec<(&'static str, Vec<u8>)>,
    /// The domain's first AS root: certificate (DER) and key (PKCS#8 DER).
    pub as_root: (Vec<u8>, Secret),
    /// The time now.
    pub now: UnixMillis,
}

impl Transaction for InitialSettings {
    const NAME: &'static str = "initial_settings";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        for (name, value) in &self.settings {
            sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2)")
                .bind(*name)
                .bind(value)
                .execute(&mut *connection)
                .await
                .with_context(|| format!("could not write the setting {name}"))?;
        }
        let (certificate, key) = &self.as_root;
        add_root(connection, certificate, key, self.now).await
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

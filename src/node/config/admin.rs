//! `[admin]`: where operators' commands and Prometheus ask.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::base::Fault;

/// The socket's name within the data directory, unless the configuration says otherwise.
const SOCKET_FILE: &str = "admin.sock";

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// The Unix socket, which only the node's own user may open; `admin.sock` in the data directory unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// A TCP address beside it, on loopback: for a Prometheus that cannot read from a socket. Whoever can connect there, every user
    /// of the machine, may do all that an operator may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

impl AdminSettings {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses an address that others can reach: the interface asks nobody for a password.
    pub(super) fn check(&self) -> Result<(), Fault> {
        match self.listen.filter(|address| !address.ip().is_loopback()) {
            Some(address) => Err(Fault::new(format!(
                "admin: listen is {address}, which is not a loopback address: the admin interface asks nobody who they are, so it is for this machine only"
            ))),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Where the admin interface's socket is.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.data.join(SOCKET_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../../configs/node.toml");

    fn with(more: &str) -> Result<Config, Fault> {
        let config = Config::parse(&format!("{SAMPLE}\n{more}"))?;
        config.admin.check().map(|()| config)
    }

    #[test]
    fn the_socket_is_in_the_data_directory_unless_the_configuration_says_otherwise() {
        assert_eq!(with("").expect("valid").admin_socket(), PathBuf::from("data/admin.sock"));
        let elsewhere = with("[admin]\nsocket = \"/run/mimi/admin.sock\"\nlisten = \"127.0.0.1:9464\"").expect("valid");
        assert_eq!(elsewhere.admin_socket(), PathBuf::from("/run/mimi/admin.sock"));
        assert_eq!(with("[admin]\nlisten = \"[::1]:9464\"").expect("valid").admin.listen, "[::1]:9464".parse().ok());
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.toml");
        std::fs::write(&path, format!("{SAMPLE}\n[admin]\nsocket = \"run/admin.sock\"\n")).expect("written");
        assert_eq!(Config::load(&path).expect("valid").admin_socket(), directory.path().join("run/admin.sock"));
    }

    #[test]
    fn an_address_that_others_can_reach_is_refused_in_a_sentence() {
        for address in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", "[::ffff:127.0.0.1]:9464"] {
            let fault = with(&format!("[admin]\nlisten = \"{address}\"")).expect_err(address).to_string();
            assert!(fault.contains(address) && fault.contains("not a loopback address"), "{fault}");
        }
        assert!(with("[admin]\nport = 1").expect_err("unknown").to_string().contains("unknown field"));
    }
}

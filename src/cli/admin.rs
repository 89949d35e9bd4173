//! Asking a running node over its admin socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{ADMIN_ANSWER_BYTES_MAX, ADMIN_CONNECTION_MAX};
use crate::node::Config;
use crate::node::admin::view::ErrorView;

/// Where to find the node, and how to show what it says.
#[derive(clap::Args)]
pub(super) struct Asking {
    /// The node's configuration file, which says where its admin socket is.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
    /// The node's answer as it is, in JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A running node's answer.
pub(super) struct Answered {
    /// Whether it is a good one is for the caller to say.
    pub(super) status: StatusCode,
    body: Bytes,
}

impl Answered {
    /// The answer, read; whatever else it is, it is one sentence.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        if let Ok(view) = serde_json::from_slice(&self.body) {
            return Ok(view);
        }
        match serde_json::from_slice::<ErrorView>(&self.body) {
            Ok(ErrorView { message, .. }) => Err(Fault::new(message)),
            Err(_) => Err(Fault::new("the running node's answer makes no sense: it may be of another version")),
        }
    }

    /// The answer as it came, without the end of its line.
    pub(super) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.body.trim_ascii_end())
    }
}

impl Asking {
    /// The node's configuration.
    pub(super) fn config(&self) -> Result<Config, Fault> {
        Config::load(&self.config)
    }

    /// Whether a node answers at the socket.
    pub(super) async fn is_running(&self) -> Result<bool, Fault> {
        let socket = self.config()?.admin_socket();
        match UnixStream::connect(&socket).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(false),
            // Whatever else is wrong, asking says it in a sentence.
            _ => Ok(true),
        }
    }

    /// Asks the running node, and takes no other answer than a good one.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<Answered, Fault> {
        let answered = self.ask_anything(method, path, body).await?;
        if answered.status.is_success() {
            return Ok(answered);
        }
        let told: ErrorView = answered.read()?;
        Err(Fault::new(told.message))
    }

    /// Asks the running node.
    pub(super) async fn ask_anything(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<Answered, Fault> {
        let config = Config::load(&self.config)?;
        let socket = config.admin_socket();
        let asked = timeout(ADMIN_CONNECTION_MAX, exchange(&socket, method, path, body)).await;
        asked.unwrap_or_else(|_| {
            let limit = ADMIN_CONNECTION_MAX.as_secs();
            Err(Fault::new(format!("the node at {} gave no answer within {limit} s", socket.display())))
        })
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<Answered, Fault> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Fault::new(format!(
            "no node is running: nothing answers at {}; start it with `mimi-node serve`, or give the configuration that it runs with",
            socket.display()
        )),
        ErrorKind::PermissionDenied => {
            Fault::new(format!("{} may be opened only by the user that the node runs as: run this as that user", socket.display()))
        }
        _ => Fault::because(format!("cannot connect to {}", socket.display()), error),
    })?;
    let failed = || format!("the node at {} did not answer", socket.display());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(failed)?;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .with_context(failed)?;
    let answer = async {
        let response = sender.send_request(request).await.with_context(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ADMIN_ANSWER_BYTES_MAX).collect().await.with_context(failed)?.to_bytes();
        Ok(Answered { status, body })
    };
    // The connection moves the octets; what becomes of it shows in the answer.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        _ = &mut connection => answer.await,
    }
}

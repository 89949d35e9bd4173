//! The first exchange on a peer connection, in both roles (*Transport* in `docs/protocol.md`): a peer is up only after it, for a
//! refused certificate shows no earlier. What the frames mean is injected.

use quinn::{Connection, SendStream};
use tokio::time::{Instant, timeout_at};

use super::error::{self, PeerError, Sent, Why};
use crate::base::{Domain, UnixMillis, limits};
use crate::transport::frame::{read_frame, write_frame};
use crate::transport::{CloseCode, FrameError};
use crate::wire::peer::ProtocolVersion;

/// What this node says in `hello`, and how it judges a peer's.
pub trait Hello: Send + Sync + 'static {
    /// Our `hello` frame, at most [`limits::HELLO_BYTES_MAX`].
    fn ours(&self) -> Vec<u8>;

    /// Judges the frame `theirs` of the peer that was dialled as `peer`, whose certificate stands for it. An error is a code to
    /// close the connection with, and one sentence for both operators.
    fn check(&self, peer: &Domain, theirs: &[u8]) -> Result<Greeting, (CloseCode, String)>;
}

/// What a peer's `hello` led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The version of the connection: the highest that both sides speak.
    pub version: ProtocolVersion,
    /// Those that the peer speaks, in its order.
    pub versions: Vec<ProtocolVersion>,
    /// The peer's clock when it said so.
    pub server_time: UnixMillis,
}

/// The dialling side: our `hello` on the first stream, the peer's in answer. On refusal the connection is closed.
pub(super) async fn offer(connection: &Connection, peer: &Domain, hello: &dyn Hello) -> Result<Greeting, PeerError> {
    let deadline = Instant::now() + limits::HELLO_TIMEOUT;
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| FrameError::Read(error.into()))?;
        write_frame(&mut send, &hello.ours()).await?;
        let _ = send.finish();
        read_frame(&mut recv, limits::HELLO_BYTES_MAX).await
    };
    let theirs = match timeout_at(deadline, exchange).await.unwrap_or(Err(FrameError::TimedOut)) {
        Ok(Some(theirs)) => theirs,
        Ok(None) => {
            CloseCode::ProtocolViolation.close(connection, "no hello");
            return Err(PeerError::not_sent(peer, Why::HelloRefused, "the peer sent no hello"));
        }
        Err(error) => {
            let told = told_why(connection, &error);
            error.code().close(connection, "no hello");
            return Err(told.map_or_else(
                || PeerError::frame(peer, &error, Sent::NotSent),
                |reason| PeerError::connection(peer, &reason, Sent::NotSent),
            ));
        }
    };
    hello.check(peer, &theirs).map_err(|(code, reason)| {
        code.close(connection, &reason);
        PeerError::not_sent(peer, error::closed_with(code), format!("its hello does not fit: {reason}"))
    })
}

/// When the peer has closed the whole connection, that tells more than what it did to the stream.
fn told_why(connection: &Connection, error: &FrameError) -> Option<quinn::ConnectionError> {
    if matches!(error, FrameError::TimedOut) { None } else { connection.close_reason() }
}

/// The accepting side: reads the peer's `hello` from its first stream, lets `check` judge it, and answers with what `ours` makes
/// then, for it tells the time. `check`
/// returns whatever the handler wants to know of the peer (its domain above all, compared with the certificate by
/// [`crate::identity::tls::names_domain`]), or a code and one sentence with which the connection is closed. An error has
/// closed the connection; its text is for the log.
pub async fn answer_hello<T>(
    connection: &Connection,
    ours: impl FnOnce() -> Vec<u8>,
    check: impl FnOnce(&[u8]) -> Result<T, (CloseCode, String)>,
) -> Result<T, String> {
    let deadline = Instant::now() + limits::HELLO_TIMEOUT;
    let exchange = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(|error| FrameError::Read(error.into()))?;
        Ok::<_, FrameError>((send, read_frame(&mut recv, limits::HELLO_BYTES_MAX).await?))
    };
    let (mut send, theirs): (SendStream, Vec<u8>) = match timeout_at(deadline, exchange).await {
        Ok(Ok((send, Some(theirs)))) => (send, theirs),
        Ok(Ok((_, None))) => {
            CloseCode::ProtocolViolation.close(connection, "no hello");
            return Err("the peer sent no hello".to_owned());
        }
        Ok(Err(error)) => {
            error.code().close(connection, "no hello");
            return Err(format!("the peer's hello could not be read: {error}"));
        }
        Err(_) => {
            CloseCode::TimedOut.close(connection, "no hello in time");
            return Err("the peer sent no hello in time".to_owned());
        }
    };
    let known = check(&theirs).map_err(|(code, reason)| {
        code.close(connection, &reason);
        format!("the peer's hello was refused: {code}: {reason}")
    })?;
    match timeout_at(deadline, write_frame(&mut send, &ours())).await.unwrap_or(Err(FrameError::TimedOut)) {
        Ok(()) => {
            let _ = send.finish();
            Ok(known)
        }
        Err(error) => {
            error.code().close(connection, "hello not taken");
            Err(format!("our hello could not be sent: {error}"))
        }
    }
}

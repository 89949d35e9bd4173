//! A connection to a peer that is up, and its streams: one request each, or frames in order as a lane's are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, timeout_at};

use super::error::{PeerError, Sent, Why};
use super::hello::Greeting;
use crate::base::{Domain, limits};
use crate::transport::frame::{read_frame_by, write_frame_by};
use crate::transport::{CloseCode, FrameError, Session};

/// A connection that is up: `hello` has been exchanged.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) greeting: Greeting,
    pub(super) since: Instant,
    /// How many answers arrived on it.
    answers: AtomicU64,
    /// Whether another one is used instead; it ends with the last request on it.
    replaced: AtomicBool,
    /// Has the connection closed when the peer's certificate is no longer accepted.
    _session: Arc<Session>,
}

impl Live {
    pub(super) fn new(connection: Connection, greeting: Greeting, session: Arc<Session>, is_replaced: bool) -> Self {
        let (answers, replaced) = (AtomicU64::new(0), AtomicBool::new(is_replaced));
        Self { connection, greeting, since: Instant::now(), answers, replaced, _session: session }
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on another one is used instead.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    /// An answer did not come in time. If none came at all since `before`, the connection itself is suspect.
    fn suspect(&self, peer: &Domain, before: u64) {
        if self.answers() == before && self.connection.close_reason().is_none() {
            tracing::warn!(%peer, "peer did not answer in time; its connection is closed and made anew when needed");
            CloseCode::TimedOut.close(&self.connection, "no answer in time");
        }
    }
}

impl Drop for Live {
    /// Nobody waits for anything on it any more.
    fn drop(&mut self) {
        if self.is_replaced() {
            CloseCode::Superseded.close(&self.connection, CloseCode::Superseded.text());
        }
    }
}

/// Whether a connection that was there before turned out to be lost before anything was sent: then a new one is made at once.
pub(super) fn lost_unused(live: &Live, error: &PeerError) -> bool {
    error.sent == Sent::NotSent && live.connection.close_reason().is_some()
}

/// A new stream. Waits while the peer allows no more at once.
pub(super) async fn open(peer: &Domain, live: &Live, deadline: Instant) -> Result<(SendStream, RecvStream), PeerError> {
    match timeout_at(deadline, live.connection.open_bi()).await {
        Ok(opened) => opened.map_err(|error| PeerError::connection(peer, &error, Sent::NotSent)),
        Err(_) => Err(PeerError::not_sent(peer, Why::TimedOut, "too many requests to this peer are waiting")),
    }
}

/// One request on one stream.
pub(super) async fn exchange(
    peer: &Domain,
    live: &Live,
    frame: &[u8],
    response_limit: usize,
    deadline: Instant,
) -> Result<Vec<u8>, PeerError> {
    let (send, mut recv) = open(peer, live, deadline).await?;
    let mut sender = PeerSender { peer: peer.clone(), send, stays_with: None };
    let before = live.answers();
    if let Err(error) = sender.write(frame, deadline).await {
        if error.why == Why::TimedOut {
            live.suspect(peer, before);
        }
        return Err(error);
    }
    sender.finish();
    read_answer(peer, live, &mut recv, response_limit, deadline, before).await
}

/// Reads one answer; any failure leaves the outcome unknown, except where the peer says that it did not look.
async fn read_answer(
    peer: &Domain,
    live: &Live,
    recv: &mut RecvStream,
    limit: usize,
    deadline: Instant,
    before: u64,
) -> Result<Vec<u8>, PeerError> {
    match read_frame_by(recv, limit, deadline).await {
        Ok(Some(answer)) => {
            live.answered();
            Ok(answer)
        }
        Ok(None) => Err(PeerError::new(peer, Why::Closed, Sent::OutcomeUnknown, "the peer ended the stream without an answer")),
        Err(error) => {
            if matches!(error, FrameError::TimedOut) {
                live.suspect(peer, before);
            }
            let _ = recv.stop(error.code().number());
            Err(PeerError::frame(peer, &error, Sent::OutcomeUnknown))
        }
    }
}

/// A stream to a peer on which frames are written and answered in order. Its halves may be used from different tasks; dropping
/// both ends the stream.
pub struct PeerStream {
    /// Where frames are written.
    pub sender: PeerSender,
    /// Where their answers come from.
    pub receiver: PeerReceiver,
}

/// The writing half of a [`PeerStream`].
pub struct PeerSender {
    peer: Domain,
    send: SendStream,
    /// The connection, where several frames are written over time: nothing more is, once it is replaced.
    stays_with: Option<Arc<Live>>,
}

/// The reading half of a [`PeerStream`].
pub struct PeerReceiver {
    peer: Domain,
    recv: RecvStream,
    live: Arc<Live>,
}

impl PeerStream {
    pub(super) fn new(peer: &Domain, live: Arc<Live>, (send, recv): (SendStream, RecvStream)) -> Self {
        let sender = PeerSender { peer: peer.clone(), send, stays_with: Some(live.clone()) };
        Self { sender, receiver: PeerReceiver { peer: peer.clone(), recv, live } }
    }
}

impl PeerSender {
    /// Writes one frame of at most [`limits::FRAME_BYTES_MAX`], waiting for the peer's flow control until `deadline`. On error
    /// the peer cannot have received the whole frame; the stream is of no more use.
    pub async fn write(&mut self, frame: &[u8], deadline: Instant) -> Result<(), PeerError> {
        if frame.len() > limits::FRAME_BYTES_MAX {
            let detail = format!("a frame of {} octets is over the limit of {}", frame.len(), limits::FRAME_BYTES_MAX);
            return Err(PeerError::not_sent(&self.peer, Why::TooLarge, detail));
        }
        if self.stays_with.as_ref().is_some_and(|live| live.is_replaced()) {
            return Err(PeerError::not_sent(&self.peer, Why::Closed, "another connection is used instead"));
        }
        write_frame_by(&mut self.send, frame, deadline).await.map_err(|error| {
            // Without this, the end of a half-written frame would look like a fault of ours.
            let _ = self.send.reset(CloseCode::Cancelled.number());
            PeerError::frame(&self.peer, &error, Sent::NotSent)
        })
    }

    /// Tells the peer that no more frames come.
    pub fn finish(&mut self) {
        // Fails only on a stream that has ended already, which the receiver reports.
        let _ = self.send.finish();
    }
}

impl PeerReceiver {
    /// Reads the next answer, at most `limit` octets, before `deadline`. On error the stream is of no more use; when the
    /// deadline passed and nothing at all was answered on the connection meanwhile, that is closed. Not cancel-safe.
    pub async fn read(&mut self, limit: usize, deadline: Instant) -> Result<Vec<u8>, PeerError> {
        let before = self.live.answers();
        read_answer(&self.peer, &self.live, &mut self.recv, limit, deadline, before).await
    }
}

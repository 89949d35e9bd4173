//! Length-prefixed frames on a QUIC stream: a big-endian `u32` and that many octets (*Transport* in `docs/protocol.md`).
//!
//! Every read is bounded in size by its caller and in time here: [`next_frame`] is what handlers use.

use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::time::Instant;

use super::codes::CloseCode;
use crate::base::limits;

/// Octets of the length before each frame.
const PREFIX_BYTES: usize = 4;

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is over the limit. Nothing was allocated or read for the frame.
    #[error("a frame of {length} octets is over the limit of {limit}")]
    TooLarge {
        /// What the prefix says, in octets.
        length: usize,
        /// What was allowed, in octets.
        limit: usize,
    },
    /// The stream was finished in the middle of a frame.
    #[error("the stream ended after {received} octets of a frame")]
    Truncated {
        /// How many octets of the frame, or of its prefix, had arrived.
        received: usize,
    },
    /// The stream or its connection ended with an error while reading.
    #[error("reading failed: {0}")]
    Read(ReadError),
    /// The stream or its connection ended with an error while writing.
    #[error("writing failed: {0}")]
    Write(WriteError),
    /// The deadline passed, or the other side was slower than it has to be.
    #[error("timed out")]
    TimedOut,
    /// The port has no memory for the frame now, or has given the memory to others while it arrived. Nothing was looked at.
    #[error("there is no room for it now")]
    NoRoom,
}

impl FrameError {
    /// The code with which to end a stream on which this happened.
    pub fn code(&self) -> CloseCode {
        match self {
            Self::TooLarge { .. } => CloseCode::TooLarge,
            Self::Truncated { .. } => CloseCode::ProtocolViolation,
            Self::TimedOut => CloseCode::TimedOut,
            Self::NoRoom => CloseCode::NotProcessed,
            Self::Read(_) | Self::Write(_) => CloseCode::Cancelled,
        }
    }
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Reads one frame of at most `limit` octets, waiting for as long as it takes; `None` when the stream was finished before a
/// frame. Not cancel-safe: after a cancelled read the stream is of no more use.
pub async fn read_frame(recv: &mut RecvStream, limit: usize) -> Result<Option<Vec<u8>>, FrameError> {
    match read_first(recv).await? {
        Some(first) => read_rest(recv, first, limit).await.map(Some),
        None => Ok(None),
    }
}

/// Waits for as long as it takes for a frame to begin, then at most [`limits::FRAME_READ_TIMEOUT`] for all of it. This is how
/// the streams that stay open (lanes, subscriptions) are read. Not cancel-safe.
pub async fn next_frame(recv: &mut RecvStream, limit: usize) -> Result<Option<Vec<u8>>, FrameError> {
    match read_first(recv).await? {
        Some(first) => within(limits::FRAME_READ_TIMEOUT, read_rest(recv, first, limit)).await.map(Some),
        None => Ok(None),
    }
}

/// Reads the one request frame of a stream just opened: all of it within [`limits::FRAME_READ_TIMEOUT`]. Not cancel-safe.
pub async fn request_frame(recv: &mut RecvStream, limit: usize) -> Result<Option<Vec<u8>>, FrameError> {
    within(limits::FRAME_READ_TIMEOUT, read_frame(recv, limit)).await
}

/// As [`read_frame`], done before `deadline`. Not cancel-safe.
pub async fn read_frame_by(recv: &mut RecvStream, limit: usize, deadline: Instant) -> Result<Option<Vec<u8>>, FrameError> {
    tokio::time::timeout_at(deadline, read_frame(recv, limit)).await.unwrap_or(Err(FrameError::TimedOut))
}

/// Writes one frame. Returns once QUIC has taken all of it, which waits for the other side's flow control: give it a deadline.
/// An error means that the other side cannot have received the whole frame.
pub async fn write_frame(send: &mut SendStream, frame: &[u8]) -> Result<(), FrameError> {
    let prefix = prefix(frame)?;
    // A small frame leaves in one write, hence one packet.
    if frame.len() <= limits::FRAME_CHUNK_BYTES {
        let mut octets = Vec::with_capacity(PREFIX_BYTES + frame.len());
        octets.extend_from_slice(&prefix);
        octets.extend_from_slice(frame);
        return send.write_all(&octets).await.map_err(FrameError::Write);
    }
    send.write_all(&prefix).await.map_err(FrameError::Write)?;
    send.write_all(frame).await.map_err(FrameError::Write)
}

/// As [`write_frame`], done before `deadline`. After an error the stream should be reset, since a frame may be half written.
pub async fn write_frame_by(send: &mut SendStream, frame: &[u8], deadline: Instant) -> Result<(), FrameError> {
    tokio::time::timeout_at(deadline, write_frame(send, frame)).await.unwrap_or(Err(FrameError::TimedOut))
}

/// As [`write_frame`], each part of [`limits::FRAME_CHUNK_BYTES`] within `pace`.
pub(super) async fn write_paced(send: &mut SendStream, frame: &[u8], pace: Duration) -> Result<(), FrameError> {
    if frame.len() <= limits::FRAME_CHUNK_BYTES {
        return within(pace, write_frame(send, frame)).await;
    }
    let prefix = prefix(frame)?;
    within(pace, async { send.write_all(&prefix).await.map_err(FrameError::Write) }).await?;
    for part in frame.chunks(limits::FRAME_CHUNK_BYTES) {
        within(pace, async { send.write_all(part).await.map_err(FrameError::Write) }).await?;
    }
    Ok(())
}

/// The length of `frame`, as it stands before it.
fn prefix(frame: &[u8]) -> Result<[u8; PREFIX_BYTES], FrameError> {
    let too_large = |_| FrameError::TooLarge { length: frame.len(), limit: u32::MAX as usize };
    u32::try_from(frame.len()).map(u32::to_be_bytes).map_err(too_large)
}

/// `work`, done in time.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(FrameError::TimedOut))
}

/// The first octets of a frame: at least one, at most a prefix. `None` at the end of the stream.
pub(super) async fn read_first(recv: &mut RecvStream) -> Result<Option<Vec<u8>>, FrameError> {
    Ok(recv.read_chunk(PREFIX_BYTES, true).await?.map(|chunk| chunk.bytes.to_vec()))
}

async fn read_rest(recv: &mut RecvStream, first: Vec<u8>, limit: usize) -> Result<Vec<u8>, FrameError> {
    let length = read_length(recv, first, limit).await?;
    let mut frame = Vec::new();
    fill(recv, &mut frame, length).await?;
    Ok(frame)
}

/// The rest of a prefix that has begun, and the length it says.
pub(super) async fn read_length(recv: &mut RecvStream, mut prefix: Vec<u8>, limit: usize) -> Result<usize, FrameError> {
    fill(recv, &mut prefix, PREFIX_BYTES).await?;
    let prefix: [u8; PREFIX_BYTES] = prefix.try_into().expect("fill returns exactly what was asked for");
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    Ok(length)
}

/// A frame of `length` octets, each part of [`limits::FRAME_CHUNK_BYTES`] within `pace`.
pub(super) async fn read_paced(recv: &mut RecvStream, length: usize, pace: Duration) -> Result<Vec<u8>, FrameError> {
    let mut frame = Vec::new();
    while frame.len() < length {
        let wanted = length.min(frame.len().saturating_add(limits::FRAME_CHUNK_BYTES));
        within(pace, fill(recv, &mut frame, wanted)).await?;
    }
    Ok(frame)
}

/// Reads until `octets` has exactly `length` of them. The vector grows with what arrives; a lying prefix reserves nothing.
async fn fill(recv: &mut RecvStream, octets: &mut Vec<u8>, length: usize) -> Result<(), FrameError> {
    while octets.len() < length {
        let wanted = (length - octets.len()).min(limits::FRAME_CHUNK_BYTES);
        match recv.read_chunk(wanted, true).await? {
            Some(chunk) => octets.extend_from_slice(&chunk.bytes),
            None => return Err(FrameError::Truncated { received: octets.len() }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::testing::{Ca, bind, local};

    /// The two ends of one stream between two nodes.
    struct Pair {
        connection: quinn::Connection,
        other: quinn::Connection,
        _endpoints: [quinn::Endpoint; 2],
    }

    async fn pair() -> Pair {
        let ca = Ca::new("ca");
        let server = bind(Some(ca.node("b.test").federation_server().expect("a server")));
        let client = bind(None);
        let config = ca.node("a.test").federation_client().expect("a client");
        let (connection, other) = tokio::join!(
            async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.expect("a connection") },
            async { server.accept().await.expect("an open endpoint").await.expect("a handshake") }
        );
        Pair { connection, other, _endpoints: [server, client] }
    }

    /// What the other end reads, frame by frame, after `octets` and FIN were written.
    async fn reads(octets: &[u8], limit: usize) -> Vec<Result<Option<Vec<u8>>, FrameError>> {
        let pair = pair().await;
        let (mut send, _recv) = pair.connection.open_bi().await.expect("a stream");
        let write = async {
            send.write_all(octets).await.expect("room");
            send.finish().expect("an open stream");
        };
        let read = async {
            let (_send, mut recv) = pair.other.accept_bi().await.expect("a stream");
            let mut all = Vec::new();
            loop {
                let one = request_frame(&mut recv, limit).await;
                let last = !matches!(one, Ok(Some(_)));
                all.push(one);
                if last {
                    return all;
                }
            }
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_a_clean_end_is_none() {
        let all = reads(b"\0\0\0\x02hi\0\0\0\0\0\0\0\x01!", 2).await;
        let all: Vec<_> = all.into_iter().map(|one| one.expect("a frame or the end")).collect();
        assert_eq!(all, [Some(b"hi".to_vec()), Some(vec![]), Some(b"!".to_vec()), None]);
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_by_its_prefix_alone() {
        let all = reads(b"\xff\xff\xff\xff", 2).await;
        assert!(matches!(all[..], [Err(FrameError::TooLarge { length: 0xffff_ffff, limit: 2 })]), "{all:?}");
        let all = reads(b"\0\0\0\x03abc", 2).await;
        assert!(matches!(all[..], [Err(FrameError::TooLarge { length: 3, limit: 2 })]), "{all:?}");
    }

    #[tokio::test]
    async fn an_end_within_prefix_or_frame_is_truncation() {
        let all = reads(b"\0\0", 9).await;
        assert!(matches!(all[..], [Err(FrameError::Truncated { received: 2 })]), "{all:?}");
        let all = reads(b"\0\0\0\x05abc", 9).await;
        assert!(matches!(all[..], [Err(FrameError::Truncated { received: 3 })]), "{all:?}");
    }

    #[tokio::test]
    async fn a_large_frame_survives_flow_control_and_a_silent_reader_a_deadline() {
        let pair = pair().await;
        let frame: Vec<u8> = (0..limits::FRAME_BYTES_MAX).map(|index| index as u8).collect();
        let (mut send, mut recv) = pair.connection.open_bi().await.expect("a stream");
        let echo = async {
            let (mut send, mut recv) = pair.other.accept_bi().await.expect("a stream");
            let frame = next_frame(&mut recv, limits::FRAME_BYTES_MAX).await.expect("a frame").expect("a frame");
            write_frame(&mut send, &frame).await.expect("room");
            (send, recv)
        };
        let ask = async {
            write_frame(&mut send, &frame).await.expect("room");
            read_frame(&mut recv, limits::FRAME_BYTES_MAX).await.expect("a frame").expect("a frame")
        };
        let (_held, answer) = tokio::join!(echo, ask);
        assert!(answer == frame);

        // Nobody reads now: the windows fill, and the deadline ends the wait.
        let deadline = Instant::now() + Duration::from_millis(50);
        let outcome = write_frame_by(&mut send, &vec![0; 8 * limits::STREAM_WINDOW_BYTES as usize], deadline).await;
        assert!(matches!(outcome, Err(FrameError::TimedOut)), "{outcome:?}");
        let outcome = read_frame_by(&mut recv, 9, Instant::now()).await;
        assert!(matches!(outcome, Err(FrameError::TimedOut)), "{outcome:?}");
    }
}

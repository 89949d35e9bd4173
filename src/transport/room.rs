//! What the connections of one port share, so that none has it all: places, receive windows, and memory for frames.
//!
//! A connection begins with little: a few streams, a small window. When its handler knows whose it is, it settles
//! ([`Accepted::settle`](super::Accepted::settle)) and has what is due to its [`Holder`]: a peer's domain, a user, or, for who has no
//! name, the machine. All connections of one holder share the same part.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::CloseCode;
use super::admission::PortLimits;
use super::frame::{self, FrameError};
use super::ledger::Ledger;
use crate::base::{Domain, UserUri, limits};

/// Whose a connection is, as far as its share is concerned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// Another domain's node.
    Peer(Domain),
    /// A user of this domain: all of the user's clients.
    User(UserUri),
    /// Nobody known: a machine ([`machine`](super::addresses::machine)).
    Stranger(IpAddr),
}

impl Holder {
    /// How many connections it may have at once.
    fn connections_max(&self) -> usize {
        match self {
            Self::Peer(_) => limits::PEER_CONNECTIONS_MAX,
            Self::User(_) => limits::USER_CONNECTIONS_MAX,
            Self::Stranger(_) => limits::STRANGER_CONNECTIONS_PER_ADDRESS_MAX,
        }
    }

    /// How many streams each of them may have at once.
    fn streams_max(&self) -> u32 {
        match self {
            Self::Peer(_) => limits::PEER_STREAMS_MAX,
            Self::User(_) => limits::CLIENT_STREAMS_MAX,
            Self::Stranger(_) => limits::UNSETTLED_STREAMS_MAX,
        }
    }
}

/// What the connections of one port share.
#[derive(Debug)]
pub(super) struct Room {
    tenants: Mutex<Tenants<Connection>>,
    ledger: Mutex<Ledger>,
    /// Octets were given back.
    freed: Notify,
    /// A permit for each connection with a wide window.
    wide: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(limits: &PortLimits) -> Arc<Self> {
        Arc::new(Self {
            tenants: Mutex::new(Tenants::default()),
            ledger: Mutex::new(Ledger::new(limits.held_bytes_max)),
            freed: Notify::new(),
            wide: Arc::new(Semaphore::new(limits::WIDE_CONNECTIONS_MAX)),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants(&self) -> MutexGuard<'_, Tenants<Connection>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose `connection` is has turned out.
    pub(super) fn settle(self: &Arc<Self>, connection: &Connection, holder: Holder) -> Tenancy {
        let (id, ousted) = self.tenants().enter(&holder, connection.clone());
        for connection in ousted {
            CloseCode::Superseded.close(&connection, "a newer connection has taken this one's place: there were too many");
        }
        let mut wide = None;
        if !matches!(holder, Holder::Stranger(_)) {
            // The other ends of many connections are far away; who comes when all wide windows are given is only slower.
            wide = match &holder {
                Holder::Peer(_) => self.wide.clone().try_acquire_owned().ok(),
                _ => None,
            };
            let window = if wide.is_some() { limits::CONNECTION_WINDOW_BYTES } else { limits::SETTLED_WINDOW_BYTES };
            connection.set_receive_window(VarInt::from_u32(window));
            connection.set_send_window(window.into());
        }
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(holder.streams_max()));
        Tenancy { room: self.clone(), holder, id, _wide: wide }
    }

    /// Waits for `octets` of memory, but not for long.
    async fn take(self: &Arc<Self>, holder: &Holder, octets: usize, patience: Duration) -> Result<Held, FrameError> {
        let taken = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                // Registered before looking, so that nothing that is freed in between is missed.
                freed.as_mut().enable();
                if let Some((id, cut)) = self.ledger().take(holder, octets) {
                    return Held { room: self.clone(), id, cut, is_served: false };
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, taken).await.map_err(|_| FrameError::NoRoom)
    }
}

/// A connection's share in what its port has. Dropping it gives the place back; it does not close the connection.
#[derive(Debug)]
pub struct Tenancy {
    room: Arc<Room>,
    holder: Holder,
    id: u64,
    _wide: Option<OwnedSemaphorePermit>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        self.room.tenants().leave(&self.holder, self.id);
    }
}

impl Tenancy {
    /// Reads the first frame of a stream just opened: all of it within [`limits::FRAME_READ_TIMEOUT`]. Not cancel-safe.
    pub async fn request_frame(&self, recv: &mut RecvStream, limit: usize) -> Result<Option<Frame>, FrameError> {
        frame::within(limits::FRAME_READ_TIMEOUT, async {
            match frame::read_first(recv).await? {
                Some(first) => self.rest(recv, first, limit).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    /// Waits for as long as it takes for a frame to begin, then at most [`limits::FRAME_READ_TIMEOUT`] for all of it. Not
    /// cancel-safe.
    pub async fn next_frame(&self, recv: &mut RecvStream, limit: usize) -> Result<Option<Frame>, FrameError> {
        match frame::read_first(recv).await? {
            Some(first) => frame::within(limits::FRAME_READ_TIMEOUT, self.rest(recv, first, limit)).await.map(Some),
            None => Ok(None),
        }
    }

    async fn rest(&self, recv: &mut RecvStream, first: Vec<u8>, limit: usize) -> Result<Frame, FrameError> {
        let length = frame::read_length(recv, first, limit).await?;
        let mut held = self.room.take(&self.holder, length, limits::HELD_WAIT_MAX).await?;
        let octets = held.unless_cut(FrameError::NoRoom, frame::read_paced(recv, length, limits::REQUEST_PACE)).await?;
        if held.serve() { Ok(Frame { octets, _held: held }) } else { Err(FrameError::NoRoom) }
    }

    /// Writes an answer: all of it within [`limits::ANSWER_WRITE_TIMEOUT`], and each part within [`limits::ANSWER_PACE`]. After an error
    /// the stream should be reset, since the answer may be half written.
    pub async fn send_answer(&self, send: &mut SendStream, answer: &[u8]) -> Result<(), FrameError> {
        frame::within(limits::ANSWER_WRITE_TIMEOUT, self.send(send, answer, limits::ANSWER_PACE)).await
    }

    /// Writes what a subscriber has not asked for now, who may be slow to take it: each part within [`limits::PUSH_PACE`].
    pub async fn send_push(&self, send: &mut SendStream, push: &[u8]) -> Result<(), FrameError> {
        self.send(send, push, limits::PUSH_PACE).await
    }

    async fn send(&self, send: &mut SendStream, frame: &[u8], pace: Duration) -> Result<(), FrameError> {
        let taken = self.room.ledger().hold(&self.holder, frame.len());
        let (id, cut) = taken.ok_or(FrameError::TimedOut)?;
        let held = Held { room: self.room.clone(), id, cut, is_served: false };
        held.unless_cut(FrameError::TimedOut, frame::write_paced(send, frame, pace)).await
    }
}

/// Octets of the port's memory; given back when dropped.
#[derive(Debug)]
struct Held {
    room: Arc<Room>,
    id: u64,
    cut: Arc<Notify>,
    is_served: bool,
}

impl Held {
    /// Waits for the other side's part of `work`, unless this is cut.
    async fn unless_cut<T>(&self, error: FrameError, work: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
        tokio::select! {
            biased;
            () = self.cut.notified() => Err(error),
            done = work => done,
        }
    }

    fn serve(&mut self) -> bool {
        self.is_served = self.room.ledger().serve(self.id);
        self.is_served
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.ledger().give_back(self.id, self.is_served);
        self.room.freed.notify_waiters();
    }
}

/// A frame that was read, and its part of the port's memory.
#[derive(Debug)]
pub struct Frame {
    octets: Vec<u8>,
    _held: Held,
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets
    }
}

/// The connections of each holder, oldest first.
#[derive(Debug)]
struct Tenants<C> {
    next: u64,
    by_holder: BTreeMap<Holder, VecDeque<(u64, C)>>,
    strangers: usize,
}

impl<C> Default for Tenants<C> {
    fn default() -> Self {
        Self { next: 0, by_holder: BTreeMap::new(), strangers: 0 }
    }
}

impl<C> Tenants<C> {
    /// Lets a connection in. Returns its number, and those that have to go: the oldest of a holder with too many, for the newest is
    /// the one that is alive when its other end was restarted; and when there are too many strangers, the oldest of the machine
    /// with the most.
    fn enter(&mut self, holder: &Holder, connection: C) -> (u64, Vec<C>) {
        let id = self.next;
        self.next += 1;
        let own = self.by_holder.entry(holder.clone()).or_default();
        own.push_back((id, connection));
        let mut ousted = Vec::new();
        if own.len() > holder.connections_max() {
            ousted.extend(own.pop_front().map(|(_, connection)| connection));
        } else if matches!(holder, Holder::Stranger(_)) {
            self.strangers += 1;
            if self.strangers > limits::STRANGERS_MAX {
                let strangers = self.by_holder.iter().filter(|(holder, _)| matches!(holder, Holder::Stranger(_)));
                let most = strangers.max_by_key(|(_, connections)| connections.len()).map(|(holder, _)| holder.clone());
                ousted.extend(most.and_then(|most| self.remove_at(&most, 0)));
            }
        }
        (id, ousted)
    }

    /// A connection is gone.
    fn leave(&mut self, holder: &Holder, id: u64) {
        let at = self.by_holder.get(holder).and_then(|own| own.iter().position(|(other, _)| *other == id));
        if let Some(at) = at {
            self.remove_at(holder, at);
        }
    }

    fn remove_at(&mut self, holder: &Holder, at: usize) -> Option<C> {
        let own = self.by_holder.get_mut(holder)?;
        let (_, connection) = own.remove(at)?;
        if own.is_empty() {
            self.by_holder.remove(holder);
        }
        self.strangers -= usize::from(matches!(holder, Holder::Stranger(_)));
        Some(connection)
    }
}

#[cfg(test)]
mod tests;

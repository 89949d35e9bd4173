//! A peer in the place of a node that takes lane frames, or does not, as a test wants. Follows the protocol by its own lights.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mimi_node::base::ids::Incarnation;
use mimi_node::base::limits::FRAME_BYTES_MAX;
use mimi_node::base::{Context as _, Domain, Fault, UnixMillis};
use mimi_node::identity::{TlsCa, TlsCertificateOptions};
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::transport::{CloseCode, EndpointSecret, endpoint};
use mimi_node::wire::peer::{FrameAnswer, LaneAnswer, LaneBatch, LaneResult, PeerRequest, PeerResponse};
use mimi_node::wire::qs::{Delivery, QueueingServiceResponse};
use mimi_node::wire::{ErrorCode, Rejection, decode, encode};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::raw::{accepting_config, hello};
use crate::world::World;

/// What is done with the frames of one lane.
#[derive(Clone, Debug)]
pub enum Say {
    /// They are taken, as far as they follow what was taken before.
    Take,
    /// They are refused.
    Refuse(Rejection),
    /// No answer, for them and all that came in the same request, until [`Receiver::release`]; then they are taken.
    Nothing,
}

/// Decides about the frames of one lane.
pub type Judge = dyn Fn(&LaneBatch) -> Say + Send + Sync;

/// A frame that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenFrame {
    /// The group's URI.
    pub group: String,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// Its place in it.
    pub lane_sequence: u64,
    /// How many recipients it was for.
    pub recipients: usize,
    /// What it delivers.
    pub delivery: Delivery,
}

/// The peer. It answers until this is dropped.
pub struct Receiver {
    endpoint: Endpoint,
    state: Arc<State>,
    released: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct State {
    domain: Domain,
    judge: Box<Judge>,
    taken: Mutex<Taken>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Taken {
    lanes: BTreeMap<String, (Incarnation, u64)>,
    frames: Vec<TakenFrame>,
    /// Requests with frames that came.
    requests: usize,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
        self.endpoint.close(CloseCode::Done.number(), b"");
    }
}

impl Receiver {
    /// Takes the place of a domain's node, which must not run.
    pub fn start(world: &World, index: usize, judge: impl Fn(&LaneBatch) -> Say + Send + Sync + 'static) -> Result<Self, Fault> {
        let (ca, site) = (load_ca(world)?, world.site(index));
        let certificate = ca.issue(&TlsCertificateOptions::for_domain(&site.domain), UnixMillis::now())?;
        let config = accepting_config(&ca, &certificate)?;
        let endpoint = endpoint::bind(site.federation, Some(config), &EndpointSecret::generate())?;
        let state = Arc::new(State {
            domain: site.domain.clone(),
            judge: Box::new(judge),
            taken: Mutex::default(),
            changed: watch::channel(0).0,
        });
        let (released, release) = watch::channel(false);
        let task = tokio::spawn(accept(endpoint.clone(), state.clone(), release));
        Ok(Self { endpoint, state, released, task })
    }

    /// Has those answered that were kept waiting.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// What was taken so far, in the order in which it was.
    pub fn taken(&self) -> Vec<TakenFrame> {
        self.state.taken.lock().unwrap_or_else(PoisonError::into_inner).frames.clone()
    }

    /// How many requests with frames came.
    pub fn requests(&self) -> usize {
        self.state.taken.lock().unwrap_or_else(PoisonError::into_inner).requests
    }

    /// Changes whenever a request with frames is looked at.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.state.changed.subscribe()
    }
}

fn load_ca(world: &World) -> Result<TlsCa, Fault> {
    let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).with_context(|| format!("cannot read {name}"));
    TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)
}

async fn accept(endpoint: Endpoint, state: Arc<State>, release: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let (state, release) = (state.clone(), release.clone());
        connections.spawn(async move {
            // A hub that gives up is the test's to notice.
            if let Ok(connection) = incoming.await {
                serve(&connection, &state, &release).await;
            }
        });
    }
}

async fn serve(connection: &Connection, state: &Arc<State>, release: &watch::Receiver<bool>) {
    let mut streams = JoinSet::new();
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (state, release) = (state.clone(), release.clone());
        streams.spawn(stream(send, recv, state, release));
    }
}

async fn stream(mut send: SendStream, mut recv: RecvStream, state: Arc<State>, release: watch::Receiver<bool>) {
    while let Ok(Some(frame)) = read_frame(&mut recv, FRAME_BYTES_MAX).await {
        let response = match decode(&frame) {
            Ok(PeerRequest::Hello(_)) => PeerResponse::Hello(hello(&state.domain)),
            Ok(PeerRequest::Lanes(batches)) => {
                let said: Vec<Say> = batches.iter().map(|batch| (state.judge)(batch)).collect();
                state.changed.send_modify(|changes| *changes += 1);
                if said.iter().any(|say| matches!(say, Say::Nothing)) {
                    let mut release = release.clone();
                    if release.wait_for(|released| *released).await.is_err() {
                        return;
                    }
                }
                PeerResponse::Lanes(batches.iter().zip(said).map(|(batch, say)| state.answer(batch, say)).collect())
            }
            _ => PeerResponse::Error(ErrorCode::Unsupported.into()),
        };
        if write_frame(&mut send, &encode(&response)).await.is_err() {
            return;
        }
    }
}

impl State {
    fn answer(&self, batch: &LaneBatch, say: Say) -> LaneAnswer {
        let result = match say {
            Say::Refuse(rejection) => LaneResult::Refused(rejection),
            Say::Take | Say::Nothing => self.take(batch),
        };
        self.changed.send_modify(|changes| *changes += 1);
        LaneAnswer { group_id: batch.group_id.clone(), incarnation: batch.incarnation, result }
    }

    fn take(&self, batch: &LaneBatch) -> LaneResult {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.requests += 1;
        let group = String::from_utf8_lossy(&batch.group_id).into_owned();
        let known = taken.lanes.get(&group).copied();
        let first = batch.frames.first().map_or(1, |frame| frame.lane_sequence);
        // Of a lane that it hears of for the first time it knows what the node knew in whose place it is.
        let mut next = match known {
            None => first,
            Some((life, next)) if life == batch.incarnation => next,
            Some(_) => 1,
        };
        let begins = known.is_some_and(|(life, _)| life != batch.incarnation);
        let mut answers = Vec::new();
        for frame in &batch.frames {
            if frame.lane_sequence > next {
                return LaneResult::Gap(next);
            }
            if frame.lane_sequence == next {
                if begins && next == 1 && frame.delivery != Delivery::Reset {
                    return LaneResult::Refused(ErrorCode::LaneConflict.into());
                }
                next += 1;
                taken.lanes.insert(group.clone(), (batch.incarnation, next));
                taken.frames.push(TakenFrame {
                    group: group.clone(),
                    incarnation: batch.incarnation,
                    lane_sequence: frame.lane_sequence,
                    recipients: frame.recipients.len(),
                    delivery: frame.delivery.clone(),
                });
            }
            let responses = frame.recipients.iter().map(|_| QueueingServiceResponse::Ok).collect();
            answers.push(FrameAnswer { lane_sequence: frame.lane_sequence, responses });
        }
        LaneResult::Accepted(answers.into())
    }
}

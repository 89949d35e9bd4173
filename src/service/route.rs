//! One client request: is it for us, or does it go on to its destination (C4, S16)?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::counts::{Asked, Outcome};
use super::{Failure, Service};
use crate::base::limits::{CLIENT_FRAME_BYTES_MAX, CLIENT_REQUEST_TIMEOUT, FRAME_BYTES_MAX};
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::{self, PeerError, Why};
use crate::identity::ClientIdentity;
use crate::wire::error::{Sent, UnreachableReason};
use crate::wire::keys::KeysRequest;
use crate::wire::peer::{PeerRequest, PeerResponse};
use crate::wire::{ClientRequest, ErrorCode, Rejection, Response, Service as Body, VERSION, decode, encode};

/// A client's connection, as its certificate says.
#[derive(Clone, Debug)]
pub(super) enum Connected {
    /// With a client chain of this domain.
    Client(Box<ClientIdentity>),
    /// Without one: only `info` and requests about accounts are answered, which prove themselves.
    Stranger,
}

impl Service {
    /// Answers a client's request frame with a response frame, whatever happens.
    pub(super) async fn answer_client(self: &Arc<Self>, frame: &[u8], who: &Connected) -> Vec<u8> {
        let mut asked = Asked::Unreadable;
        let answered = tokio::time::timeout(CLIENT_REQUEST_TIMEOUT, self.client_request(frame, who, &mut asked)).await;
        // What was submitted to storage goes on without us; only the same request, repeated, tells how it ended.
        let in_time = answered.unwrap_or_else(|_| {
            let limit = CLIENT_REQUEST_TIMEOUT.as_secs();
            Err(Fault::new(format!("a client's request was not done within {limit} s: the disk or a peer is too slow")).into())
        });
        self.counts.of_clients.one(asked, outcome(&in_time));
        in_time.unwrap_or_else(encode_failure)
    }

    /// `asked`: where to note what the request is for.
    async fn client_request(self: &Arc<Self>, frame: &[u8], who: &Connected, asked: &mut Asked) -> Result<Vec<u8>, Failure> {
        let (request, destination) = read(frame)?;
        *asked = if destination == self.domain { (&request.content.service).into() } else { Asked::Proxied };
        if let Connected::Stranger = who
            && !matches!(&request.content.service, Body::Info(_) | Body::Accounts(_))
        {
            return Err(ErrorCode::NotAuthorized.into());
        }
        // Requests about an account prove themselves: a client that has ended its own account may ask again how that went.
        if let Connected::Client(client) = who
            && !matches!(&request.content.service, Body::Info(_) | Body::Accounts(_))
        {
            self.check_client(client)?;
        }
        if destination == self.domain {
            return self.here(&request, who).await;
        }
        match &request.content.service {
            Body::Ds(_) => {}
            Body::Keys(message) if matches!(message.request, KeysRequest::Claim(_)) => {}
            // Everything else is between a client and its own node.
            _ => return Err(ErrorCode::NotAuthorized.into()),
        }
        self.proxy(frame, &destination).await
    }

    /// Answers a request that a peer proxied for one of its users. It is for us or for nobody: never proxied again.
    pub(super) async fn answer_proxied(self: &Arc<Self>, frame: &[u8], peer: &Domain) -> Vec<u8> {
        let mut asked = Asked::Unreadable;
        let answered = self.proxied_request(frame, peer, &mut asked).await;
        self.counts.of_peers.one(asked, outcome(&answered));
        if let Err(Failure::Rejected(_)) = answered {
            self.peers.traffic().of(peer).refused.one();
        }
        answered.unwrap_or_else(encode_failure)
    }

    async fn proxied_request(self: &Arc<Self>, frame: &[u8], peer: &Domain, asked: &mut Asked) -> Result<Vec<u8>, Failure> {
        // What no client may send, no node may send for it: its messages would not fit the frames in which others fetch them.
        if frame.len() > CLIENT_FRAME_BYTES_MAX {
            return Err(ErrorCode::TooLarge.into());
        }
        let (request, destination) = read(frame)?;
        *asked = (&request.content.service).into();
        if destination != self.domain {
            return Err(ErrorCode::NotAuthorized.into());
        }
        match &request.content.service {
            Body::Ds(message) => self.ds_request(&request, message, peer).await,
            Body::Keys(message) if matches!(message.request, KeysRequest::Claim(_)) => {
                self.keys_request(&request, message, peer).await
            }
            _ => Err(ErrorCode::NotAuthorized.into()),
        }
    }

    /// A request of one of our own clients to us.
    async fn here(self: &Arc<Self>, request: &ClientRequest, who: &Connected) -> Result<Vec<u8>, Failure> {
        match (&request.content.service, who) {
            // A stranger must not make this node ask other domains.
            (Body::Info(body), Connected::Stranger) if body.domain[..] != *self.domain.as_bytes() => {
                Err(ErrorCode::NotAuthorized.into())
            }
            (Body::Info(body), _) => self.info(body).await.map(Self::encode_reply),
            (Body::Accounts(message), _) => self.accounts_request(request, message).await,
            (Body::Ds(message), Connected::Client(_)) => self.ds_request(request, message, &self.domain).await,
            (Body::Keys(message), Connected::Client(_)) => self.keys_request(request, message, &self.domain).await,
            (Body::Qs(message), Connected::Client(client)) => self.qs_request(request, message, client).await,
            (_, Connected::Stranger) => Err(ErrorCode::NotAuthorized.into()),
        }
    }

    /// Carries a request to its destination and its answer back, both unchanged.
    async fn proxy(&self, frame: &[u8], destination: &Domain) -> Result<Vec<u8>, Failure> {
        // It would only be told so again, and refused in the end, which costs everyone here.
        if let Some(wait) = self.peer_rates.must_wait(destination, UnixMillis::now()) {
            return Err(Rejection::rate_limited(wait).into());
        }
        let request = encode(&PeerRequest::Proxy(frame.into()));
        // A moment less than the client's own limit, so that the client hears why.
        let deadline = Instant::now() + CLIENT_REQUEST_TIMEOUT.mul_f32(0.9);
        let answer =
            self.peers.request(destination, &request, FRAME_BYTES_MAX, deadline).await.map_err(|error| unreachable(&error))?;
        match decode(&answer) {
            Ok(PeerResponse::Proxy(response)) => Ok(response.into_vec()),
            Ok(PeerResponse::Error(rejection)) => {
                self.heed(destination, &rejection);
                Err(rejection.into())
            }
            _ => {
                tracing::warn!(%destination, "a peer answered a proxied request with something else");
                Err(Rejection::unreachable(UnreachableReason::Denied, Sent::OutcomeUnknown).into())
            }
        }
    }

    /// A peer has refused a request of this node as such: when we asked too often, nothing more is asked before it may be.
    pub(super) fn heed(&self, peer: &Domain, rejection: &Rejection) {
        if let Some(asked) = rejection.as_rate_limited() {
            self.peer_rates.told_to_wait(peer, Duration::from_millis(asked.retry_after_ms), UnixMillis::now());
        }
    }
}

/// As what an answer is counted.
fn outcome(answered: &Result<Vec<u8>, Failure>) -> Outcome {
    Outcome(answered.as_ref().err().map(|failure| match failure {
        Failure::Rejected(rejection) => rejection.code,
        Failure::Fault(_) => ErrorCode::Internal,
    }))
}

/// Decodes a request and its destination.
pub(super) fn read(frame: &[u8]) -> Result<(ClientRequest, Domain), Rejection> {
    // Looked at before the rest is decoded: another version may have another form.
    if frame.get(..2).is_some_and(|version| version != VERSION.to_be_bytes()) {
        return Err(ErrorCode::UnsupportedVersion.into());
    }
    let request: ClientRequest = decode(frame)?;
    let destination = Domain::from_bytes(&request.content.destination).map_err(|_| ErrorCode::Malformed)?;
    Ok((request, destination))
}

pub(super) fn encode_failure(failure: Failure) -> Vec<u8> {
    encode(&Response::new(Err(failure.into_rejection())))
}

/// What a client is told of a peer that gave no answer.
pub(super) fn unreachable(error: &PeerError) -> Rejection {
    let sent = match error.sent {
        federation::Sent::NotSent => Sent::NotSent,
        federation::Sent::OutcomeUnknown => Sent::OutcomeUnknown,
    };
    tracing::info!("a peer gave no answer: {error}");
    if error.why == Why::Local {
        return ErrorCode::Internal.into();
    }
    Rejection::unreachable(reason(&error.why), sent)
}

fn reason(why: &Why) -> UnreachableReason {
    match why {
        Why::NoSuchDomain => UnreachableReason::NoSuchDomain,
        Why::NoRecords => UnreachableReason::DoesNotFederate,
        Why::RefusesFederation => UnreachableReason::RefusesFederation,
        Why::DnsFailure | Why::DnsTimedOut => UnreachableReason::DnsFailure,
        Why::Unreachable | Why::Refused | Why::Protocol | Why::Closed | Why::Local => UnreachableReason::Refused,
        Why::ForbiddenAddress => UnreachableReason::ForbiddenAddress,
        Why::TimedOut => UnreachableReason::TimedOut,
        Why::Certificate => UnreachableReason::Certificate,
        Why::HelloRefused | Why::Denied | Why::DeniedHere | Why::TooLarge => UnreachableReason::Denied,
        Why::BackingOff { .. } => UnreachableReason::BackingOff,
        Why::Held => UnreachableReason::Held,
        Why::OverLimits => UnreachableReason::OverLimits,
    }
}

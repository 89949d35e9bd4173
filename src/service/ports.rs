//! What the two ports do with a connection: who it is, and each of its streams (*Transport* in `docs/protocol.md`).

use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use tokio::task::JoinSet;

use super::hello::OwnHello;
use super::peer_rates::Over;
use super::route::{Connected, encode_failure, read};
use super::{Failure, Service};
use crate::base::limits::{FRAME_BYTES_MAX, FRAME_READ_TIMEOUT, STRANGER_CONNECTION_MAX, STRANGER_FRAME_BYTES_MAX};
use crate::base::{Domain, UnixMillis};
use crate::federation::answer_hello;
use crate::transport::frame::{next_frame, request_frame, write_frame};
use crate::transport::{Accepted, CloseCode, ConnectionHandler, FrameError, PortCounts, Turned};
use crate::wire::peer::{CredentialStatusRequest, PeerRequest, PeerResponse};
use crate::wire::qs::{QsRequest, QsSender};
use crate::wire::{ErrorCode, Rejection, Service as Body, decode, encode};

/// The port of the domain's own clients, ALPN `mimi-client/1`.
pub struct ClientPort(pub Arc<Service>);

/// The port of other nodes, ALPN `mimi-fed/1`.
pub struct PeerPort {
    service: Arc<Service>,
    hello: Arc<OwnHello>,
}

impl PeerPort {
    /// The port of `service`, at which peers are greeted with `hello`.
    pub fn new(service: Arc<Service>, hello: Arc<OwnHello>) -> Self {
        Self { service, hello }
    }
}

impl ConnectionHandler for PeerPort {
    async fn connection(self: Arc<Self>, accepted: Accepted) {
        let (service, hello) = (&self.service, &self.hello);
        let ours = || encode(&PeerResponse::Hello(hello.frame()));
        let judge = |frame: &[u8]| {
            let Ok(PeerRequest::Hello(theirs)) = decode(frame) else {
                return Err((CloseCode::ProtocolViolation, "the first frame is not a hello".to_owned()));
            };
            let wrong = |reason: String| (CloseCode::WrongDomain, reason);
            let domain = Domain::from_bytes(&theirs.domain).map_err(|error| wrong(error.to_string()))?;
            // One domain per connection, and it is the certificate's (C3, X7). Held until the connection ends: it is closed when
            // the certificate is no longer accepted.
            let session = service.peers.tls().admit(&domain, &accepted.connection)?;
            if domain == service.domain {
                return Err(wrong("this is the node's own domain".to_owned()));
            }
            service.let_in(&domain)?;
            hello.judge(&theirs, &domain)?;
            Ok((domain, session))
        };
        let mut turned = Turned::Hello;
        let checked =
            answer_hello(&accepted.connection, ours, |frame| judge(frame).inspect_err(|(code, _)| turned = turned_away(*code)));
        match checked.await {
            Ok((domain, _session)) => {
                service.peers.inbound_contact(&domain);
                service.serve_peer(&accepted, &domain).await;
            }
            Err(reason) => {
                service.counts.federation_port.turned.one(turned);
                if matches!(turned, Turned::Denied | Turned::OverLimits) {
                    // The log has it already, once for each peer.
                    tracing::debug!(remote = %accepted.remote, "a peer was turned away: {reason}");
                } else {
                    tracing::info!(remote = %accepted.remote, "a peer connection was refused: {reason}");
                }
            }
        }
    }

    fn counts(&self) -> &PortCounts {
        &self.service.counts.federation_port
    }
}

/// As what a connection is counted that is closed with this code in answer to a `hello`.
fn turned_away(code: CloseCode) -> Turned {
    match code {
        CloseCode::NotAuthorized => Turned::Certificate,
        CloseCode::WrongDomain => Turned::WrongDomain,
        CloseCode::Denied => Turned::Denied,
        CloseCode::OverLimits => Turned::OverLimits,
        _ => Turned::Hello,
    }
}

impl ConnectionHandler for ClientPort {
    async fn connection(self: Arc<Self>, accepted: Accepted) {
        let service = &self.0;
        let who = if accepted.peer_chain.is_empty() {
            Connected::Stranger
        } else {
            match service.own_client_of(&accepted.peer_chain, UnixMillis::now()) {
                Ok(client) => Connected::Client(Box::new(client)),
                Err(_) => {
                    service.counts.client_port.turned.one(Turned::Certificate);
                    return CloseCode::NotAuthorized
                        .close(&accepted.connection, "the certificates name no client of this domain");
                }
            }
        };
        service.serve_client(&accepted, &who).await;
    }

    fn counts(&self) -> &PortCounts {
        &self.0.counts.client_port
    }
}

impl Service {
    /// Serves the streams of a connection, each in a task, until the connection ends or the node stops. Requests that have begun
    /// are finished.
    async fn serve_streams<F, T>(&self, accepted: &Accepted, stream: F)
    where
        F: Fn(SendStream, RecvStream) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let mut shutdown = self.shutdown.clone();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                opened = accepted.connection.accept_bi() => match opened {
                    Ok((send, recv)) => {
                        tasks.spawn(stream(send, recv));
                    }
                    Err(_) => break,
                },
                Some(_) = tasks.join_next() => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn serve_peer(self: &Arc<Self>, accepted: &Accepted, peer: &Domain) {
        self.serve_streams(accepted, |send, recv| {
            let (service, peer) = (self.clone(), peer.clone());
            async move { service.peer_stream(send, recv, &peer).await }
        })
        .await;
    }

    /// Answers the requests of one stream of a peer in order, until it ends: one for most, many for lanes.
    async fn peer_stream(self: &Arc<Self>, mut send: SendStream, mut recv: RecvStream, peer: &Domain) {
        let limits = || self.peers.policies().limits(peer);
        let _counted = match self.peer_rates.stream(peer, &limits(), UnixMillis::now()) {
            Ok(counted) => counted,
            Err(over) => return self.answer_over(send, &mut recv, peer, over).await,
        };
        let mut shutdown = self.shutdown.clone();
        loop {
            let frame = tokio::select! {
                frame = next_frame(&mut recv, FRAME_BYTES_MAX) => frame,
                _ = shutdown.wait_for(|stop| *stop) => {
                    let _ = send.reset(CloseCode::NotProcessed.number());
                    return;
                }
            };
            let answer = match frame {
                Ok(Some(frame)) => match self.peer_rates.request(peer, frame.len(), &limits(), UnixMillis::now()) {
                    Ok(()) => encode(&self.peer_request(&frame, peer).await),
                    Err(over) if over.is_refused() => return self.answer_over(send, &mut recv, peer, over).await,
                    Err(over) => {
                        self.peers.traffic().of(peer).over_limits.one();
                        encode(&PeerResponse::Error(Rejection::rate_limited(over.wait())))
                    }
                },
                Ok(None) => {
                    let _ = send.finish();
                    return;
                }
                Err(error) => return refuse_stream(&mut send, &mut recv, &error),
            };
            if write_frame(&mut send, &answer).await.is_err() {
                return;
            }
        }
    }

    /// Ends a stream of a peer that is over its limits: with an answer, or with the end of all its connections.
    async fn answer_over(&self, mut send: SendStream, recv: &mut RecvStream, peer: &Domain, over: Over) {
        self.peers.traffic().of(peer).over_limits.one();
        let code = CloseCode::OverLimits.number();
        if over.is_refused() {
            let _ = recv.stop(code);
            let _ = send.reset(code);
            return self.refuse(peer);
        }
        let answer = encode(&PeerResponse::Error(Rejection::rate_limited(over.wait())));
        send_answer(&mut send, &answer).await;
        let _ = recv.stop(code);
    }

    pub(super) async fn peer_request(self: &Arc<Self>, frame: &[u8], peer: &Domain) -> PeerResponse {
        let traffic = self.peers.traffic().of(peer);
        let request = PeerRequest::read(frame);
        if !matches!(request, Ok(PeerRequest::Lanes(_))) {
            traffic.requests_received.one();
        }
        let response = self.peer_response(request, peer).await;
        if let PeerResponse::Error(_) = response {
            traffic.refused.one();
        }
        response
    }

    async fn peer_response(self: &Arc<Self>, request: Result<PeerRequest, Rejection>, peer: &Domain) -> PeerResponse {
        match request {
            Ok(PeerRequest::Proxy(request)) => PeerResponse::Proxy(self.answer_proxied(&request, peer).await.into()),
            Ok(PeerRequest::Lanes(batches)) => match self.take_lanes(peer, batches).await {
                Ok(answers) => PeerResponse::Lanes(answers),
                Err(rejection) => PeerResponse::Error(rejection),
            },
            Ok(PeerRequest::DomainInfo) => PeerResponse::DomainInfo(self.own_info()),
            Ok(PeerRequest::CredentialStatus(CredentialStatusRequest { .. })) => self.answer_status().await,
            Ok(PeerRequest::CredentialStatusPush(status)) => self.answer_status_push(peer, &status).await,
            Ok(PeerRequest::ProbeBack) => self.answer_probe_back(peer).await,
            // A second hello has no place on a connection.
            Ok(PeerRequest::Hello(_)) => PeerResponse::Error(ErrorCode::Malformed.into()),
            Err(rejection) => PeerResponse::Error(rejection),
        }
    }

    async fn serve_client(self: &Arc<Self>, accepted: &Accepted, who: &Connected) {
        let serve = self.serve_streams(accepted, |send, recv| {
            let (service, who) = (self.clone(), who.clone());
            async move { service.client_stream(send, recv, &who).await }
        });
        match who {
            Connected::Client(_) => serve.await,
            // A place among the connections is not for keeping by whoever has no name.
            Connected::Stranger => {
                let _ = tokio::time::timeout(STRANGER_CONNECTION_MAX, serve).await;
            }
        }
    }

    /// Answers the one request of a client's stream; a subscription keeps the stream.
    async fn client_stream(self: &Arc<Self>, mut send: SendStream, mut recv: RecvStream, who: &Connected) {
        let limit = match who {
            Connected::Client(_) => self.limits.client_frame_bytes_max,
            Connected::Stranger => STRANGER_FRAME_BYTES_MAX,
        };
        let frame = match request_frame(&mut recv, limit).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(FrameError::TooLarge { .. }) => {
                // Worth an answer: an honest client learns what to change.
                let answer = encode_failure(ErrorCode::TooLarge.into());
                let _ = recv.stop(CloseCode::TooLarge.number());
                return send_answer(&mut send, &answer).await;
            }
            Err(error) => return refuse_stream(&mut send, &mut recv, &error),
        };
        if let Some(refused) = self.serve_subscription(&frame, who, &mut send).await {
            let answer = match refused {
                NotServed::OtherRequest => self.answer_client(&frame, who).await,
                NotServed::Failed(failure) => encode_failure(failure),
            };
            send_answer(&mut send, &answer).await;
        }
    }

    /// Serves the request if it is a subscription; says why not otherwise.
    async fn serve_subscription(self: &Arc<Self>, frame: &[u8], who: &Connected, send: &mut SendStream) -> Option<NotServed> {
        let Connected::Client(client) = who else { return Some(NotServed::OtherRequest) };
        let Ok((request, destination)) = read(frame) else { return Some(NotServed::OtherRequest) };
        let Body::Qs(message) = &request.content.service else { return Some(NotServed::OtherRequest) };
        let (QsSender::Owner(queue_id), QsRequest::Subscribe(body)) = (&message.sender, &message.request) else {
            return Some(NotServed::OtherRequest);
        };
        if destination != self.domain {
            return Some(NotServed::Failed(ErrorCode::NotAuthorized.into()));
        }
        self.subscription(&request, *queue_id, body, client, send).await.err().map(NotServed::Failed)
    }
}

/// Why a stream is not a served subscription.
enum NotServed {
    OtherRequest,
    Failed(Failure),
}

async fn send_answer(send: &mut SendStream, answer: &[u8]) {
    // A client that takes no answer is given the time that a request has; it asks again with the same request id.
    let written = tokio::time::timeout(FRAME_READ_TIMEOUT, write_frame(send, answer)).await;
    if matches!(written, Ok(Ok(()))) {
        let _ = send.finish();
        // Waited for, so that a stopping node does not cut the answer off.
        let _ = tokio::time::timeout(FRAME_READ_TIMEOUT, send.stopped()).await;
    }
}

fn refuse_stream(send: &mut SendStream, recv: &mut RecvStream, error: &FrameError) {
    let code = error.code().number();
    let _ = recv.stop(code);
    let _ = send.reset(code);
}

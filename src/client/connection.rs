//! [`Node`]: the client's connection to its own node, made when needed and made again when it breaks.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};

use arc_swap::ArcSwap;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::mls::Leaf;
use crate::base::secret::Secret;
use crate::base::{Domain, Fault, limits};
use crate::transport::discovery::{Resolver, ResolverSettings, Service};
use crate::transport::endpoint::{self, EndpointSecret};
use crate::transport::{ClientIdentity, CloseCode, frame, tls};
use crate::wire::{ClientRequest, Response, decode, encode};

/// Why no answer came. The request may or may not have been acted on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoAnswer(String);

/// One domain's node, as its client sees it.
#[derive(Debug)]
pub(super) struct Node {
    domain: Domain,
    resolver: Resolver,
    config: ArcSwap<quinn::ClientConfig>,
    /// The TLS CAs that are trusted, by SHA-256 of their keys.
    pins: std::sync::Mutex<Vec<[u8; 32]>>,
    /// One per address family, made when first dialled.
    endpoints: Mutex<[Option<Endpoint>; 2]>,
    connection: Mutex<Option<Connection>>,
}

impl Node {
    /// The node of `domain`, whose TLS CA's key has one of the SHA-256 hashes `pins`. Connects only when there is something to ask.
    pub(super) fn new(
        domain: &Domain,
        resolver: &[SocketAddr],
        pins: &[[u8; 32]],
        identity: Option<&ClientIdentity>,
    ) -> Result<Self, Fault> {
        Ok(Self {
            domain: domain.clone(),
            resolver: Resolver::new(&ResolverSettings { servers: resolver.to_vec(), ..ResolverSettings::default() })?,
            config: ArcSwap::from_pointee(tls::client_config(pins, identity)?),
            pins: std::sync::Mutex::new(pins.to_vec()),
            endpoints: Mutex::default(),
            connection: Mutex::default(),
        })
    }

    /// One request on a stream of its own, answered before `deadline`.
    pub(super) async fn request(&self, request: &ClientRequest, deadline: Instant) -> Result<Response, NoAnswer> {
        let connection = self.connection(deadline).await?;
        let before = connection.stats().udp_rx.datagrams;
        let exchange = async {
            let mut recv = open(&connection, request).await?;
            let octets = frame::read_frame(&mut recv, limits::FRAME_BYTES_MAX).await.map_err(text)?;
            let octets = octets.ok_or_else(|| NoAnswer("the stream ended without an answer".into()))?;
            decode(&octets).map_err(text)
        };
        tokio::pin!(exchange);
        if let Ok(answer) = timeout_at(deadline.min(Instant::now() + limits::CLIENT_SILENCE_MAX), &mut exchange).await {
            return answer.map_err(|error| closed(&connection).unwrap_or(error));
        }
        if connection.stats().udp_rx.datagrams == before {
            CloseCode::TimedOut.close(&connection, "no packet came");
            return Err(NoAnswer("the node fell silent".into()));
        }
        let answer = timeout_at(deadline, &mut exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(NoAnswer("no answer in time".into())));
        answer.map_err(|error| closed(&connection).unwrap_or(error))
    }

    /// A request whose answers keep coming.
    pub(super) async fn subscribe(&self, request: &ClientRequest) -> Result<Subscription, NoAnswer> {
        let deadline = Instant::now() + limits::DIAL_TIMEOUT;
        let connection = self.connection(deadline).await?;
        let opened = timeout_at(deadline, open(&connection, request)).await;
        let recv = opened.unwrap_or_else(|_| Err(NoAnswer("the node took no request in time".into())))?;
        Ok(Subscription { recv, _connection: connection })
    }

    /// Says good-bye, so that the node need not wait for the idle time-out.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            CloseCode::Done.close(&connection, "");
        }
        for endpoint in self.endpoints.lock().await.iter_mut().filter_map(Option::take) {
            // A node that is gone is not waited for.
            let _ = timeout(limits::CLIENT_CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }

    /// From now on connects with these certificates and trusts these TLS CAs. `renewed`: the certificates are new; the connection
    /// that is there, by the old ones, stays until it ends.
    pub(super) async fn present(&self, pins: &[[u8; 32]], leaf: &Leaf, renewed: bool) -> Result<(), Fault> {
        let differ = *self.pins.lock().unwrap_or_else(PoisonError::into_inner) != pins;
        if renewed || differ {
            let identity = ClientIdentity { chain: leaf.chain.clone(), key: Secret::new(leaf.key.pkcs8().expose().to_vec()) };
            self.config.store(Arc::new(tls::client_config(pins, Some(&identity))?));
            *self.pins.lock().unwrap_or_else(PoisonError::into_inner) = pins.to_vec();
        }
        Ok(())
    }

    async fn connection(&self, deadline: Instant) -> Result<Connection, NoAnswer> {
        // Held while dialling: whoever else asks wants the same connection.
        let mut current = match timeout_at(deadline, self.connection.lock()).await {
            Ok(current) => current,
            Err(_) => return Err(NoAnswer("no connection in time".into())),
        };
        if let Some(connection) = current.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let dialled = timeout_at(deadline.min(Instant::now() + limits::DIAL_TIMEOUT), self.dial()).await;
        let connection = dialled.unwrap_or_else(|_| Err(NoAnswer(format!("no node of {} answered in time", self.domain))))?;
        *current = Some(connection.clone());
        Ok(connection)
    }

    async fn dial(&self) -> Result<Connection, NoAnswer> {
        let targets = self.resolver.resolve(Service::Client, &self.domain).await.map_err(text)?;
        let mut last = NoAnswer(format!("{} has no address", self.domain));
        for address in targets.iter().flat_map(|target| &target.addresses) {
            match timeout(limits::DIAL_ADDRESS_TIMEOUT, self.dial_address(*address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => last = NoAnswer(format!("{address} does not answer")),
            }
        }
        Err(last)
    }

    async fn dial_address(&self, address: SocketAddr) -> Result<Connection, NoAnswer> {
        let endpoint = {
            let mut endpoints = self.endpoints.lock().await;
            let family = endpoints.get_mut(usize::from(address.is_ipv6())).expect("there are two families");
            match family {
                Some(endpoint) => endpoint.clone(),
                None => {
                    let any = match address {
                        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                    };
                    // The secret only matters for accepting: a client's endpoint has no connections to recognise.
                    let bound = endpoint::bind(any, None, &EndpointSecret::generate()).map_err(text)?;
                    family.insert(bound).clone()
                }
            }
        };
        let told = |error: &dyn std::fmt::Display| NoAnswer(format!("{address}: {error}"));
        let connecting = endpoint.connect_with(quinn::ClientConfig::clone(&self.config.load()), address, self.domain.as_str());
        connecting.map_err(|error| told(&error))?.await.map_err(|error| told(&error))
    }
}

/// What the node said when it closed the connection, such as that this client is not authorized any more: a stream's error does
/// not tell.
fn closed(connection: &Connection) -> Option<NoAnswer> {
    match connection.close_reason()? {
        ConnectionError::ApplicationClosed(close) => {
            Some(NoAnswer(format!("the node closed the connection: {}", CloseCode::describe(close.error_code))))
        }
        _ => None,
    }
}

fn text(error: impl std::fmt::Display) -> NoAnswer {
    NoAnswer(error.to_string())
}

async fn open(connection: &Connection, request: &ClientRequest) -> Result<RecvStream, NoAnswer> {
    let (mut send, recv) = connection.open_bi().await.map_err(text)?;
    frame::write_frame(&mut send, &encode(request)).await.map_err(text)?;
    send.finish().map_err(text)?;
    Ok(recv)
}

/// The answers to a `subscribe`.
#[derive(Debug)]
pub(super) struct Subscription {
    recv: RecvStream,
    /// Keeps the connection from being closed while this is read.
    _connection: Connection,
}

impl Subscription {
    /// The next answer. Not cancel-safe: after a cancelled call the subscription is of no more use.
    pub(super) async fn next(&mut self) -> Result<Response, NoAnswer> {
        let octets = frame::next_frame(&mut self.recv, limits::FRAME_BYTES_MAX).await.map_err(text)?;
        decode(&octets.ok_or_else(|| NoAnswer("the node ended the subscription".into()))?).map_err(text)
    }
}

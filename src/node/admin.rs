//! The admin interface: HTTP/1.1 on a Unix socket that only the node's user may open, and on loopback TCP if so configured. What
//! operators' commands, Prometheus and container health checks ask (`docs/admin.md`).
//!
//! | file | is |
//! |---|---|
//! | here | listening, and what bounds a connection |
//! | [`socket`] | the socket's file: taken over from a node that is gone, never from one that lives |
//! | [`router`] | one request: which it is, and its answer |
//! | [`view`] | what is answered, as JSON |
//! | [`peers`], [`lanes`] | gathering what is known of them |

mod lanes;
mod peers;
mod router;
mod socket;
pub mod view;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config::Config;
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{
    ADMIN_BODY_BYTES_MAX, ADMIN_CONNECTION_MAX, ADMIN_CONNECTIONS_MAX, ADMIN_HEAD_BYTES_MAX, ADMIN_HEADERS_MAX,
    ADMIN_READ_TIMEOUT,
};
pub(super) use peers::{Calendar, STATES};
pub(super) use router::Admin;
use router::{Answer, Door, Refusal};
use socket::Socket;

/// The admin interface before it answers.
pub(super) struct AdminListener {
    socket: Socket,
    unix: UnixListener,
    tcp: Option<TcpListener>,
}

impl AdminListener {
    /// Takes the configured places. Fails with a sentence when another node lives there.
    pub(super) async fn bind(config: &Config) -> Result<Self, Fault> {
        let (socket, unix) = Socket::take(&config.admin_socket())?;
        let tcp = match config.admin.listen {
            Some(address) => {
                let cannot = || {
                    format!(
                        "cannot listen on {address} (TCP) for the admin interface: change [admin] listen, or end what uses it"
                    )
                };
                Some(TcpListener::bind(address).await.with_context(cannot)?)
            }
            None => None,
        };
        Ok(Self { socket, unix, tcp })
    }

    /// Where it listens on TCP, if so configured.
    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Answers until the node stops. Requests that have begun are cut off then: none of them changes anything halfway.
    pub(super) async fn run(self, admin: Arc<Admin>, mut stopping: watch::Receiver<bool>) {
        let Self { socket, unix, tcp } = self;
        let mut doors = JoinSet::new();
        doors.spawn(accept(Door::Socket, admin.clone(), unix));
        if let Some(tcp) = tcp {
            doors.spawn(accept(Door::Tcp, admin, tcp));
        }
        let _ = stopping.wait_for(|stop| *stop).await;
        doors.shutdown().await;
        drop(socket);
    }
}

/// What connections come from.
trait Listener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Takes connections at one door, each in a task that ends with this future, so many at once and no more.
async fn accept(door: Door, admin: Arc<Admin>, listener: impl Listener) {
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("nobody closes the semaphore");
        while tasks.try_join_next().is_some() {}
        match listener.next().await {
            Ok(stream) => {
                let admin = admin.clone();
                tasks.spawn(async move {
                    serve(stream, door, admin).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Too many open files, most likely: those that end make room.
                tracing::warn!(%error, "a connection to the admin interface could not be taken");
                tokio::time::sleep(ADMIN_READ_TIMEOUT / 10).await;
            }
        }
    }
}

/// One connection: one request and its answer, bounded in size and time.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, door: Door, admin: Arc<Admin>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(respond(request, door, &admin).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ADMIN_READ_TIMEOUT)
        .max_buf_size(ADMIN_HEAD_BYTES_MAX)
        .max_headers(ADMIN_HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(ADMIN_CONNECTION_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin interface ended badly"),
        Err(_) => tracing::debug!("a connection to the admin interface took too long"),
    }
}

async fn respond(request: Request<Incoming>, door: Door, admin: &Admin) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let read = timeout(ADMIN_READ_TIMEOUT, Limited::new(body, ADMIN_BODY_BYTES_MAX).collect()).await;
    let answer = match read {
        Ok(Ok(body)) => admin.answer(door, &head, &body.to_bytes()).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body has more than {ADMIN_BODY_BYTES_MAX} octets");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).into()
        }
        Ok(Err(_)) => Refusal::new(StatusCode::BAD_REQUEST, "bad_request", "the body could not be read").into(),
        Err(_) => Refusal::new(StatusCode::REQUEST_TIMEOUT, "timed_out", "the body did not arrive in time").into(),
    };
    let Answer { status, content_type, allow, body } = answer;
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(hyper::header::CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    if let Some(allow) = allow.and_then(|allow| hyper::header::HeaderValue::from_str(&allow).ok()) {
        headers.insert(hyper::header::ALLOW, allow);
    }
    response
}

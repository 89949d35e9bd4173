//! One request of the admin interface and its answer. Knows no socket: what came in goes in, what goes out comes out.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::peers::Calendar;
use super::view::{ErrorView, FlushedView, HealthView, ReloadedView};
use crate::base::limits::TRY_WRITING_TIMEOUT;
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::PeerOverride;
use crate::identity::tls::days_left;
use crate::node::metrics::{self, Metrics};
use crate::service::Service;
use crate::service::peer_policy::PolicyError;
use crate::storage::probe::TryWriting;

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The Unix socket: only the node's user can have opened it.
    Socket,
    /// Loopback TCP: any user of the machine, and any page that one of their browsers shows.
    Tcp,
}

/// Reads the TLS files again.
pub(in crate::node) type Reload = Arc<dyn Fn() -> Result<(), Fault> + Send + Sync>;

/// What the admin interface knows and can do.
pub(in crate::node) struct Admin {
    pub(in crate::node) service: Arc<Service>,
    pub(in crate::node) calendar: Calendar,
    pub(in crate::node) reload: Reload,
    pub(in crate::node) metrics: Metrics,
}

/// What goes out.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    /// The methods that would have done, if this one did not.
    pub(super) allow: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Why there is no good answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: String,
    allow: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), allow: None }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        // Whoever may ask here may read the log, too: nothing of it is kept back.
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", fault.to_string())
    }
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Fault(fault) => fault.into(),
            PolicyError::Invalid { .. } => Self::bad_request(error.to_string()),
            PolicyError::OwnDomain(_) | PolicyError::TooMany => Self::new(StatusCode::CONFLICT, "refused", error.to_string()),
        }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let view = ErrorView { error: refusal.error.to_owned(), message: refusal.message };
        Self { allow: refusal.allow, ..json(refusal.status, &view) }
    }
}

/// Every field of ours can be written as JSON.
fn json(status: StatusCode, view: &impl Serialize) -> Answer {
    let mut body = serde_json::to_vec(view).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer of the admin interface could not be written");
        b"{\"error\":\"failed\",\"message\":\"the answer could not be written\"}".to_vec()
    });
    body.push(b'\n');
    Answer { status, content_type: "application/json", allow: None, body }
}

fn ok(view: &impl Serialize) -> Answer {
    json(StatusCode::OK, view)
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Metrics,
    Peers,
    Peer,
    Retry,
    Hold,
    Release,
    Deny,
    Allow,
    Override,
    Forget,
    FlushPeer,
    Flush,
    Doctor,
    Lanes,
    DeadLetters,
    Reload,
}

/// Every route: method, path, and what it is. `DOMAIN` stands for one segment.
const ROUTES: &[(Method, &str, Route)] = &[
    (Method::GET, "/health", Route::Health),
    (Method::GET, "/metrics", Route::Metrics),
    (Method::GET, "/peers", Route::Peers),
    (Method::GET, "/peers/DOMAIN", Route::Peer),
    (Method::POST, "/peers/DOMAIN/retry", Route::Retry),
    (Method::POST, "/peers/DOMAIN/hold", Route::Hold),
    (Method::POST, "/peers/DOMAIN/release", Route::Release),
    (Method::POST, "/peers/DOMAIN/deny", Route::Deny),
    (Method::POST, "/peers/DOMAIN/allow", Route::Allow),
    (Method::PUT, "/peers/DOMAIN/override", Route::Override),
    (Method::DELETE, "/peers/DOMAIN/override", Route::Forget),
    (Method::POST, "/peers/DOMAIN/flush", Route::FlushPeer),
    (Method::POST, "/flush", Route::Flush),
    (Method::POST, "/doctor/DOMAIN", Route::Doctor),
    (Method::GET, "/lanes", Route::Lanes),
    (Method::GET, "/dead-letters", Route::DeadLetters),
    (Method::POST, "/reload", Route::Reload),
];

/// The domain in `path` (empty where the pattern has none) if the path fits.
fn fits<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let (mut domain, mut segments) = ("", path.split('/'));
    for wanted in pattern.split('/') {
        let segment = segments.next()?;
        if wanted == "DOMAIN" {
            domain = segment;
        } else if segment != wanted {
            return None;
        }
    }
    segments.next().is_none().then_some(domain)
}

/// The route of a request, and the domain that it names.
fn route<'a>(method: &Method, path: &'a str) -> Result<(Route, &'a str), Refusal> {
    let mut others = Vec::new();
    for (wanted, pattern, route) in ROUTES {
        if let Some(domain) = fits(pattern, path) {
            if wanted == method {
                return Ok((*route, domain));
            }
            others.push(wanted.as_str());
        }
    }
    if others.is_empty() {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}: see docs/admin.md")));
    }
    let allow = others.join(", ");
    let message = format!("{path} takes {allow}, not {method}");
    Err(Refusal { allow: Some(allow), ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message) })
}

/// The domain of `?domain=`, if there is one; nothing else may be asked.
fn of_domain(head: &Parts) -> Result<Option<Domain>, Refusal> {
    let Some(query) = head.uri.query().filter(|query| !query.is_empty()) else { return Ok(None) };
    let domain = query.strip_prefix("domain=").and_then(|domain| domain.parse().ok());
    domain.map(Some).ok_or_else(|| Refusal::bad_request("the query may be domain=DOMAIN and nothing else"))
}

/// The optional body of what changes something.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reason {
    /// Why, for the log.
    reason: Option<String>,
}

fn reason(body: &[u8]) -> Result<String, Refusal> {
    let reason: Reason = if body.is_empty() { Reason::default() } else { parse(body)? };
    Ok(reason.reason.unwrap_or_default())
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body is not the JSON that is wanted: {error}")))
}

/// A page that a browser shows may make it send requests here, even to a name that leads here (DNS rebinding). Neither has what a
/// program of this machine sends: the address as the host, and no origin.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let forbidden = |message: &str| Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    if headers.contains_key(ORIGIN) {
        return forbidden("requests of web pages are not answered");
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) if is_loopback(host) => Ok(()),
        _ => forbidden("the Host header does not name a loopback address"),
    }
}

/// Whether a `Host` (host, optional port) names loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|octet| octet.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

impl Admin {
    /// Answers one request.
    pub(super) async fn answer(&self, door: Door, head: &Parts, body: &[u8]) -> Answer {
        self.try_answer(door, head, body).await.unwrap_or_else(Answer::from)
    }

    async fn try_answer(&self, door: Door, head: &Parts, body: &[u8]) -> Result<Answer, Refusal> {
        if door == Door::Tcp {
            check_origin(&head.headers)?;
        }
        let (route, domain) = route(&head.method, head.uri.path())?;
        let domain =
            || domain.parse::<Domain>().map_err(|error| Refusal::bad_request(format!("{domain:?} is not a domain: {error}")));
        let service = &self.service;
        match route {
            Route::Health => Ok(self.health().await),
            Route::Metrics => {
                let body = self.scrape().await?.into_bytes();
                Ok(Answer { status: StatusCode::OK, content_type: metrics::CONTENT_TYPE, allow: None, body })
            }
            Route::Peers => Ok(ok(&self.peers().await?)),
            Route::Peer => self.shown(&domain()?).await,
            Route::Retry => {
                let domain = domain()?;
                service.retry_peer(&domain);
                self.shown(&domain).await
            }
            Route::Hold => {
                let domain = domain()?;
                service.hold_peer(&domain, &reason(body)?).await?;
                self.shown(&domain).await
            }
            Route::Release => {
                let domain = domain()?;
                service.release_peer(&domain).await?;
                self.shown(&domain).await
            }
            Route::Deny => {
                let domain = domain()?;
                service.deny_peer(&domain, &reason(body)?).await?;
                self.shown(&domain).await
            }
            Route::Allow => {
                let domain = domain()?;
                service.allow_peer(&domain).await?;
                self.shown(&domain).await
            }
            Route::Override => {
                let domain = domain()?;
                service.override_peer(&domain, parse::<PeerOverride>(body)?).await?;
                self.shown(&domain).await
            }
            Route::Forget => {
                let domain = domain()?;
                service.forget_override(&domain).await?;
                self.shown(&domain).await
            }
            Route::FlushPeer => {
                let domain = domain()?;
                service.flush_peers(Some(&domain));
                Ok(ok(&FlushedView { flushed: Some(domain) }))
            }
            Route::Flush => {
                service.flush_peers(None);
                Ok(ok(&FlushedView { flushed: None }))
            }
            Route::Doctor => Ok(ok(&self.service.diagnose(&domain()?).await)),
            Route::Lanes => Ok(ok(&self.lanes(of_domain(head)?.as_ref()).await?)),
            Route::DeadLetters => Ok(ok(&self.dead_letters(of_domain(head)?.as_ref()).await?)),
            Route::Reload => {
                let reload = self.reload.clone();
                let read = tokio::task::spawn_blocking(move || reload()).await;
                let refused = |fault: Fault| Refusal::new(StatusCode::CONFLICT, "not_used", fault.to_string());
                read.map_err(|error| Fault::because("reading the TLS files was interrupted", error))?.map_err(refused)?;
                Ok(ok(&ReloadedView { reloaded: true }))
            }
        }
    }

    async fn shown(&self, domain: &Domain) -> Result<Answer, Refusal> {
        Ok(ok(&self.peer(domain).await?))
    }

    async fn health(&self) -> Answer {
        let now = UnixMillis::now();
        let storage = self.service.storage();
        let written = tokio::time::timeout(TRY_WRITING_TIMEOUT, storage.write(TryWriting { now })).await;
        let storage_error = match written {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(fault.to_string()),
            Err(_) => Some(format!("a write did not reach the disk within {} s", TRY_WRITING_TIMEOUT.as_secs())),
        };
        let listening = !self.service.is_stopping();
        let ready = listening && storage_error.is_none();
        let view = HealthView {
            ready,
            domain: self.service.domain().clone(),
            listening,
            storage_writable: storage_error.is_none(),
            storage_error,
            certificate_days_left: days_left(self.service.peers().tls().not_after(), now),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.calendar.began().to_rfc3339(),
        };
        json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &view)
    }
}

#[cfg(test)]
mod tests;

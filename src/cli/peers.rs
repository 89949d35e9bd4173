//! `mimi-node peers` and `mimi-node health`: what a running node knows of other domains, and how it does.

use std::net::SocketAddr;

use clap::Subcommand;
use hyper::Method;

use super::admin::Asking;
use super::table::{age, or_dash, table};
use crate::base::{Context as _, Domain, Fault};
use crate::node::admin::view::{FlushedView, HealthView, PeerView};
use crate::transport::{Network, Pin};

/// `mimi-node peers …`: all of them ask the running node.
#[derive(Subcommand)]
pub(super) enum PeersCommand {
    /// List the other domains that the node knows.
    List {
        #[command(flatten)]
        asking: Asking,
    },
    /// Show all that the node knows of one.
    Show {
        /// The other domain.
        domain: Domain,
        #[command(flatten)]
        asking: Asking,
    },
    /// Try to reach one at once, however long the back-off.
    Retry {
        /// The other domain.
        domain: Domain,
        #[command(flatten)]
        asking: Asking,
    },
    /// Send nothing to one for now; what waits for it is kept.
    Hold(Decision),
    /// End a hold.
    Release {
        /// The other domain.
        domain: Domain,
        #[command(flatten)]
        asking: Asking,
    },
    /// Forget what DNS said of one, or of all, and try at once those that could not be reached.
    Flush {
        /// The other domain; without it, all.
        domain: Option<Domain>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Do not federate with one: its connections are closed, it is told so, and what waits for it is kept.
    Deny(Decision),
    /// Federate with one, whatever the configuration says.
    Allow {
        /// The other domain.
        domain: Domain,
        #[command(flatten)]
        asking: Asking,
    },
    /// Say where one is, by what it is known and how much it may ask for; what is not named stays as it was. Kept over a restart.
    Set(Box<Said>),
}

/// What an operator decides about one peer.
#[derive(clap::Args)]
pub(super) struct Decision {
    /// The other domain.
    domain: Domain,
    /// Why: kept with the decision, and in the log.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

/// `mimi-node peers set`.
#[derive(clap::Args)]
pub(super) struct Said {
    /// The other domain.
    domain: Domain,
    /// Forget all that was said of it while nodes ran, holds and denials included: what the configuration says holds.
    #[arg(long, conflicts_with_all = ["address", "dns", "exempt", "pin", "wildcard", "limit"])]
    forget: bool,
    /// Where its node is, as ADDRESS:PORT, instead of what DNS says; repeatable, in the order in which to try them.
    #[arg(long)]
    address: Vec<SocketAddr>,
    /// Find it by DNS, whatever addresses were given.
    #[arg(long, conflicts_with = "address")]
    dns: bool,
    /// A network that is dialled for it although it is not for the public internet, such as 10.1.0.0/16; repeatable.
    #[arg(long)]
    exempt: Vec<Network>,
    /// The key of a CA or of the node itself, hexadecimal SHA-256: nothing else vouches for it then; repeatable.
    #[arg(long)]
    pin: Vec<Pin>,
    /// Whether a wildcard certificate will do.
    #[arg(long)]
    wildcard: Option<bool>,
    /// How much it may ask for, as NAME=NUMBER, such as requests_per_second_max=100; repeatable.
    #[arg(long, value_parser = limit)]
    limit: Vec<(String, u32)>,
    #[command(flatten)]
    asking: Asking,
}

/// A limit as it is typed.
fn limit(text: &str) -> Result<(String, u32), String> {
    let (name, number) = text.split_once('=').ok_or("NAME=NUMBER is wanted")?;
    Ok((name.to_owned(), number.parse().map_err(|_| format!("{number:?} is not a number"))?))
}

async fn set(said: Said) -> Result<(), Fault> {
    let Said { domain, forget, address, dns, exempt, pin, wildcard, limit, asking } = said;
    let path = format!("/peers/{domain}/override");
    if forget {
        let answered = asking.ask(Method::DELETE, &path, None).await?;
        return show(&asking, &answered, |peer: PeerView| details(&peer));
    }
    let known: PeerView = asking.ask(Method::GET, &format!("/peers/{domain}"), None).await?.read()?;
    let mut next = known.policy.said.unwrap_or_default();
    let given = (!address.is_empty() || dns).then_some(address);
    next.addresses = given.or(next.addresses);
    next.exempt = (!exempt.is_empty()).then_some(exempt).or(next.exempt);
    next.pins = (!pin.is_empty()).then_some(pin).or(next.pins);
    next.wildcard = wildcard.or(next.wildcard);
    let mut next = serde_json::to_value(next).context("what is said cannot be written")?;
    // The node knows which limits there are.
    for (name, number) in limit {
        next["limits"][name] = number.into();
    }
    let answered = asking.ask(Method::PUT, &path, Some(next)).await?;
    show(&asking, &answered, |peer: PeerView| details(&peer))
}

/// `mimi-node health`.
#[derive(clap::Args)]
pub(super) struct HealthArguments {
    #[command(flatten)]
    asking: Asking,
}

pub(super) async fn run(command: PeersCommand) -> Result<(), Fault> {
    match command {
        PeersCommand::List { asking } => {
            let answered = asking.ask(Method::GET, "/peers", None).await?;
            show(&asking, &answered, |peers: Vec<PeerView>| list(&peers))
        }
        PeersCommand::Show { domain, asking } => {
            let answered = asking.ask(Method::GET, &format!("/peers/{domain}"), None).await?;
            show(&asking, &answered, |peer: PeerView| details(&peer))
        }
        PeersCommand::Retry { domain, asking } => act(&domain, "retry", None, &asking).await,
        PeersCommand::Hold(decision) => decide("hold", &decision).await,
        PeersCommand::Release { domain, asking } => act(&domain, "release", None, &asking).await,
        PeersCommand::Deny(decision) => decide("deny", &decision).await,
        PeersCommand::Allow { domain, asking } => act(&domain, "allow", None, &asking).await,
        PeersCommand::Set(said) => set(*said).await,
        PeersCommand::Flush { domain, asking } => {
            let path = domain.map_or_else(|| "/flush".to_owned(), |domain| format!("/peers/{domain}/flush"));
            let answered = asking.ask(Method::POST, &path, None).await?;
            show(&asking, &answered, |flushed: FlushedView| match flushed.flushed {
                Some(domain) => format!("What DNS said of {domain} is forgotten.\n"),
                None => "What DNS said is forgotten.\n".to_owned(),
            })
        }
    }
}

async fn decide(action: &str, decision: &Decision) -> Result<(), Fault> {
    act(&decision.domain, action, decision.reason.as_deref(), &decision.asking).await
}

async fn act(domain: &Domain, action: &str, reason: Option<&str>, asking: &Asking) -> Result<(), Fault> {
    let body = reason.map(|reason| serde_json::json!({ "reason": reason }));
    let answered = asking.ask(Method::POST, &format!("/peers/{domain}/{action}"), body).await?;
    show(asking, &answered, |peer: PeerView| list(std::slice::from_ref(&peer)))
}

pub(super) async fn health(arguments: HealthArguments) -> Result<(), Fault> {
    let asking = &arguments.asking;
    let answered = asking.ask_anything(Method::GET, "/health", None).await?;
    let health: HealthView = answered.read()?;
    show(asking, &answered, |health: HealthView| {
        let ready = if health.ready { "ready" } else { "not ready" };
        format!("{} is {ready}, since {}; version {}\n", health.domain, health.started_at, health.version)
    })?;
    match (health.ready, health.storage_error) {
        (true, _) => Ok(()),
        (false, Some(error)) => Err(Fault::new(format!("the node cannot write to its database: {error}"))),
        (false, None) => Err(Fault::new("the node is stopping")),
    }
}

/// Prints an answer: as it came, or as `text` puts it for people.
pub(super) fn show<T: serde::de::DeserializeOwned>(
    asking: &Asking,
    answered: &super::admin::Answered,
    text: impl FnOnce(T) -> String,
) -> Result<(), Fault> {
    if asking.json {
        println!("{}", answered.text());
    } else {
        print!("{}", text(answered.read()?));
    }
    Ok(())
}

fn list(peers: &[PeerView]) -> String {
    let rows = peers.iter().map(|peer| {
        [
            peer.domain.to_string(),
            peer.state.clone(),
            or_dash(peer.since.as_ref()),
            or_dash(peer.connected),
            peer.queued.frames.to_string(),
            or_dash(peer.queued.oldest_age_seconds.map(age)),
            peer.in_flight.frames.to_string(),
            peer.last_error.as_ref().map_or_else(|| "-".to_owned(), |error| error.kind.clone()),
        ]
    });
    table(["PEER", "STATE", "SINCE", "CONNECTED TO", "QUEUED", "OLDEST", "IN FLIGHT", "LAST ERROR"], rows)
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn details(peer: &PeerView) -> String {
    let error = peer.last_error.as_ref();
    let rows = [
        ("peer", peer.domain.to_string()),
        ("state", peer.state.clone()),
        ("since", or_dash(peer.since.as_ref())),
        ("retry at", or_dash(peer.retry_at.as_ref())),
        ("failures in a row", peer.failures.to_string()),
        ("last error", error.map_or_else(|| "-".to_owned(), |error| format!("{}: {}", error.kind, error.detail))),
        ("connected to", or_dash(peer.connected)),
        ("certificate, days left", or_dash(peer.certificate_days_left)),
        ("may federate", peer.policy.denied.map_or_else(|| "yes".to_owned(), |denied| format!("no: {denied}"))),
        ("held", yes_or_no(peer.policy.held)),
        ("reason", or_dash(peer.policy.reason.as_ref())),
        ("in the configuration", yes_or_no(peer.policy.configured)),
        ("said at run time", or_dash(peer.policy.said.as_ref().and_then(|said| serde_json::to_string(said).ok()))),
        ("frames queued", peer.queued.frames.to_string()),
        ("in lanes", peer.queued.lanes.to_string()),
        ("lanes held", peer.queued.lanes_held.to_string()),
        ("oldest", or_dash(peer.queued.oldest_age_seconds.map(age))),
        ("frames in flight", peer.in_flight.frames.to_string()),
        ("requests in flight", peer.in_flight.requests.to_string()),
        ("frames sent", peer.counts.frames_sent.to_string()),
        ("frames delivered", peer.counts.frames_delivered.to_string()),
        ("frames received", peer.counts.frames_received.to_string()),
        ("requests sent", peer.counts.requests_sent.to_string()),
        ("requests failed", peer.counts.requests_failed.to_string()),
        ("requests received", peer.counts.requests_received.to_string()),
        ("refused", peer.counts.refused.to_string()),
        ("over its limits", peer.counts.over_limits.to_string()),
        ("dead letters", peer.dead_letters.to_string()),
    ];
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

//! Wiring a node, running it, stopping it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::admin::{Admin, AdminListener, Calendar};
use super::config::Config;
use super::init;
use super::metrics::Metrics;
use super::reload::{self, Reloader};
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{FORGET_AT_ONCE_MAX, HOUSEKEEPING_INTERVAL, SHUTDOWN_TIMEOUT};
use crate::base::{Domain, UnixMillis};
use crate::federation::PeerPool;
use crate::service::Service;
use crate::service::hello::OwnHello;
use crate::service::peer_policy::stored_overrides;
use crate::service::ports::{ClientPort, PeerPort};
use crate::storage::Storage;
use crate::storage::answers::ForgetAnswers;
use crate::transport::{CloseCode, Resolver, accept, endpoint};

/// A running node.
pub struct Node {
    service: Arc<Service>,
    federation: Endpoint,
    client: Endpoint,
    tls: Arc<Reloader>,
    shutdown: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Node {
    /// Starts the node that `config` describes; returns once it answers on both ports.
    pub async fn start(config: &Config) -> Result<Self, Fault> {
        Self::start_greeting(config, OwnHello::new(config.domain.clone())).await
    }

    /// As [`Node::start`], with another `hello`: as a node of a later version would say it.
    pub async fn start_greeting(config: &Config, hello: OwnHello) -> Result<Self, Fault> {
        let reloader = Arc::new(Reloader::load(config)?);
        let tls = reloader.tls();
        let storage = Storage::open(&config.data).await?;
        let settings = init::load(&storage, &config.domain, &config.data).await?;
        let as_roots = [settings.keys.as_root.certificate().to_vec()];

        let federation = endpoint::bind(config.listen.federation, Some(tls.federation_server()?), &settings.federation_secret)?;
        let client = endpoint::bind(config.listen.client, Some(tls.client_server(&as_roots)?), &settings.client_secret)?;
        let admin_listener = AdminListener::bind(config).await?;
        let admin_tcp = admin_listener.tcp_address();
        let resolver = Resolver::new(&config.dns.resolver_settings())?;
        // Peers are dialled from the port that they dial: their packets for a connection that this node lost in a crash then
        // find the secret that ends it at once.
        let hello = Arc::new(hello);
        let mut dial_settings = config.dial_settings();
        // In force before anything is sent or taken.
        dial_settings.policies = dial_settings.policies.with_overrides(stored_overrides(&storage).await?);
        let peers = PeerPool::new(federation.clone(), tls, resolver, config.domain.clone(), hello.clone(), dial_settings)?;

        let (shutdown, stopping) = watch::channel(false);
        let service =
            Service::new(config.domain.clone(), storage, peers, settings.keys, config.limits.clone(), stopping.clone()).await?;
        service.start_workers().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept::run(federation.clone(), Arc::new(PeerPort::new(service.clone(), hello)), stopping.clone()));
        tasks.spawn(accept::run(client.clone(), Arc::new(ClientPort(service.clone())), stopping.clone()));
        tasks.spawn(keep_house(service.clone(), stopping.clone()));
        tasks.spawn(look_after_groups(service.clone(), stopping.clone()));
        tasks.spawn(reload::run(reloader.clone(), stopping.clone()));
        let admin = Admin {
            service: service.clone(),
            calendar: Calendar::now(),
            metrics: Metrics::new(reloader.counts().clone()),
            reload: {
                let reloader = reloader.clone();
                Arc::new(move || reloader.reload())
            },
        };
        tasks.spawn(admin_listener.run(Arc::new(admin), stopping));
        let node = Self { service, federation, client, tls: reloader, shutdown, tasks };
        tracing::info!(
            domain = %node.domain(),
            federation = %node.federation_address()?,
            client = %node.client_address()?,
            admin = %config.admin_socket().display(),
            admin_tcp = admin_tcp.map(tracing::field::display),
            "serving"
        );
        Ok(node)
    }

    /// The domain that is served.
    pub fn domain(&self) -> &Domain {
        self.service.domain()
    }

    /// The node's services, for whoever runs it in-process.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Reads the TLS files again at once, as on SIGHUP, and takes up what has changed; requests in flight are not disturbed. What
    /// cannot be used leaves the old in force; the log has said so, and the error says it again.
    pub async fn reload_tls(&self) -> Result<(), Fault> {
        let reloader = self.tls.clone();
        tokio::task::spawn_blocking(move || reloader.reload()).await.context("reading the TLS files was interrupted")?
    }

    /// Where other nodes reach it.
    pub fn federation_address(&self) -> Result<SocketAddr, Fault> {
        self.federation.local_addr().context("the federation port has no address")
    }

    /// Where its clients reach it.
    pub fn client_address(&self) -> Result<SocketAddr, Fault> {
        self.client.local_addr().context("the client port has no address")
    }

    /// Stops: no new requests, those begun are finished, the database is closed. Gives up waiting after a deadline and says so.
    pub async fn stop(mut self) -> Result<(), Fault> {
        self.shutdown.send_replace(true);
        // The accept loops give their connections SHUTDOWN_TIMEOUT and then cut them off; a moment more for doing so.
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            self.service.join_workers().await;
        };
        let in_time = tokio::time::timeout(SHUTDOWN_TIMEOUT + Duration::from_secs(1), drained).await.is_ok();
        self.tasks.abort_all();
        self.service.peers().close_all(CloseCode::ShuttingDown);
        tokio::join!(endpoint::close(&self.federation), endpoint::close(&self.client));
        // Whatever was accepted is written, however long that takes the disk.
        self.service.storage().close().await;
        tracing::info!(domain = %self.service.domain(), "stopped");
        if in_time { Ok(()) } else { Err(Fault::new("some work did not end in time and was cut off")) }
    }
}

async fn keep_house(service: Arc<Service>, mut stopping: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(HOUSEKEEPING_INTERVAL);
    loop {
        let stop = tokio::select! {
            _ = interval.tick() => false,
            _ = stopping.wait_for(|stop| *stop) => true,
        };
        if stop {
            return;
        }
        if let Err(fault) = service.keep_queues(UnixMillis::now()).await {
            tracing::error!("queues could not be looked after: {fault}");
        }
        loop {
            let forget = ForgetAnswers { now: UnixMillis::now(), limit: FORGET_AT_ONCE_MAX };
            match service.storage().write(forget).await {
                Ok(FORGET_AT_ONCE_MAX) => {}
                Ok(_) => break,
                Err(fault) => {
                    tracing::error!("housekeeping failed: {fault}");
                    break;
                }
            }
        }
    }
}

/// Has leaves removed that were silent for too long, and deleted groups forgotten.
async fn look_after_groups(service: Arc<Service>, mut stopping: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(service.look_after_groups_interval());
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        if let Err(fault) = service.look_after_groups(UnixMillis::now()).await {
            tracing::error!("groups could not be looked after: {fault}");
        }
    }
}

//! Whether a node answers, as its clients would find out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use mimi_node::base::ids::RequestId;
use mimi_node::base::{Context as _, Fault, UnixMillis};
use mimi_node::identity::pem::certificates_from_pem;
use mimi_node::identity::tls::spki_hash;
use mimi_node::node::config::Config;
use mimi_node::wire::info::InfoRequest;
use mimi_node::wire::{Content, Reply, Response, Service, decode, encode};

use crate::raw::Raw;

/// A node that is well answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) async fn run(config: &Path) -> Result<(), Fault> {
    let config = Config::load(config)?;
    let text = std::fs::read_to_string(&config.tls.certificate).context("cannot read the node's certificate")?;
    let chain = certificates_from_pem(&text)?;
    let pin = spki_hash(chain.last().context("there is no certificate")?)?;
    let address = match config.listen.client {
        address if address.ip().is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        address => address,
    };
    let ask = async {
        let raw = Raw::client(address, &config.domain, pin, None).await?;
        let service = Service::Info(InfoRequest { domain: config.domain.as_bytes().into() });
        let request = Content::new(&config.domain, RequestId::random(), UnixMillis::now(), service).unsigned();
        raw.exchange(&encode(&request)).await
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask).await.context("no answer in time")?;
    let answer = answer.map_err(|ended| Fault::new(format!("no answer: {ended:?}")))?;
    let response: Response = decode(&answer).context("the answer is malformed")?;
    match response.into_result() {
        Ok(Reply::DomainInfo(_)) => Ok(()),
        other => Err(Fault::new(format!("the answer is {other:?}"))),
    }
}

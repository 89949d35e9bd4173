//! Enrolment: from an invitation to a client with certificates, a queue and published KeyPackages (S20).
//!
//! All keys and request ids are on disk before anything is sent, and every step can be repeated: the node answers a repeat of a
//! request id as before. So an enrolment that was interrupted is taken up by running it again with the same invitation.

use std::path::Path;

use tokio::time::Instant;

use super::connection::Node;
use super::core::{Result, pin};
use super::error::ClientError;
use super::mls::Provider;
use super::outbox::Question;
use super::state::{Account, Blob, Queue, State, Store};
use super::{Client, ClientSettings};
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{Context as _, Domain, Fault, UnixMillis, UserUri};
use crate::identity::chain::{AsRoots, validate_user_chain};
use crate::identity::issue::{issue_client, user_csr};
use crate::wire::accounts::{AccountsMessage, AccountsRequest, Enrol};
use crate::wire::info::InfoRequest;
use crate::wire::qs::{CreateQueue, QsMessage, QsRequest, QsSender};
use crate::wire::request::Service;
use crate::wire::{Invitation, List, Opaque, Reply};

/// The name in the certificate request: the AS takes the real one from the account that the token is for.
const NAME_IN_REQUEST: &str = "invited";

impl Client {
    /// Enrols the client `device` of the invited user in `dir`, or goes on with an enrolment that was interrupted.
    ///
    /// Fails when `dir` already holds an enrolled client, or one that is being enrolled with another invitation.
    pub async fn enrol(dir: &Path, invitation: &Invitation, device: &str, settings: ClientSettings) -> Result<Self> {
        let deadline = Instant::now() + settings.request_deadline;
        // A name that no URI can carry is refused before anything is used up.
        UserUri::new(&invitation.domain, NAME_IN_REQUEST).and_then(|user| user.client(device)).map_err(|_| {
            ClientError::Invalid(format!("{device:?} is no device name: want letters a-z, digits, '-', '_' and '.'"))
        })?;
        let store = Store::open(dir)?;
        let (mut state, values) = match store.load()? {
            Some((state, _)) if state.account.complete => {
                return Err(ClientError::Invalid(format!("{} already holds {}", dir.display(), state.account.client)));
            }
            Some((state, _)) if state.account.token != invitation.token || state.account.device != device => {
                return Err(ClientError::Invalid(format!(
                    "{} holds an unfinished enrolment with another invitation or device name",
                    dir.display()
                )));
            }
            Some(loaded) => loaded,
            None => (new_state(invitation, device, &settings)?, Default::default()),
        };
        if !settings.resolver.is_empty() {
            // The one given before may have been wrong.
            state.account.resolver.clone_from(&settings.resolver);
        }
        store.save(&state, &values)?;
        if state.account.user_certificate.0.is_empty() {
            ask_for_certificate(&mut state, deadline).await?;
            store.save(&state, &values)?;
        }
        let client = Self::start(store, state, Provider::with_values(values), settings).await?;
        client.finish_enrolment(deadline).await?;
        Ok(client)
    }

    /// Queue and KeyPackages, as far as they are not there yet.
    async fn finish_enrolment(&self, deadline: Instant) -> Result<()> {
        let (queue, request) = self.transact(|core| Ok((core.state.queue.clone(), core.state.account.queue_request))).await?;
        if queue.is_none() {
            let certificates = self.chain().iter().map(|der| Opaque::from(der.as_slice())).collect();
            let create = QsRequest::Create(CreateQueue { owner_key: self.owner_key().public().into() });
            let service = Service::Qs(QsMessage { sender: QsSender::Client(certificates), request: create });
            let destination = self.uri().domain().clone();
            let question = Question { request, destination, service, key: Some(self.leaf_key()), perhaps_done: true };
            let answer = self.shared.put(&question, deadline).await.map_err(|error| ClientError::NotReached(error.0))?;
            let Reply::QueueCreated(created) = answer? else {
                return Err(ClientError::Untrusted("the node answered a new queue with something else".into()));
            };
            self.transact(move |core| {
                core.state.queue = Some(Queue { id: created.queue_id, generation: created.generation, next: 1, acked: 0 });
                core.save()
            })
            .await?;
        }
        let now = self.shared.now();
        let publish = self
            .make(move |core| match core.state.outbox.first() {
                Some(left) => Ok(left.clone()),
                None => core.make_key_packages(core.state.account.key_packages, true, now),
            })
            .await?;
        self.settle_other(publish, deadline).await?;
        self.shared.key_packages_used.store(false, std::sync::atomic::Ordering::Relaxed);
        self.transact(|core| {
            core.state.account.complete = true;
            core.save()
        })
        .await
    }
}

/// A state with all keys made and nothing asked.
fn new_state(invitation: &Invitation, device: &str, settings: &ClientSettings) -> Result<State> {
    let (user_key, client_key, owner_key) = (SigningKey::generate()?, SigningKey::generate()?, SigningKey::generate()?);
    let kept = |key: &SigningKey| Blob(key.pkcs8().expose().to_vec());
    let name = UserUri::new(&invitation.domain, NAME_IN_REQUEST).context("a plain word is a name")?;
    let account = Account {
        domain: invitation.domain.to_string(),
        device: device.to_owned(),
        token: invitation.token,
        tls_ca_spki_hash: invitation.tls_ca_spki_hash,
        resolver: settings.resolver.clone(),
        enrol_request: RequestId::random(),
        certificate_request: Blob(user_csr(&user_key, &name)?),
        queue_request: RequestId::random(),
        user_key: kept(&user_key),
        client_key: kept(&client_key),
        owner_key: kept(&owner_key),
        user_certificate: Blob::default(),
        client_certificate: Blob::default(),
        client: String::new(),
        key_packages: settings.key_packages,
        complete: false,
    };
    Ok(State {
        account,
        queue: None,
        domains: Default::default(),
        groups: Default::default(),
        outbox: Vec::new(),
        backlog: Default::default(),
        history: Vec::new(),
        history_count: 0,
        unlogged: Vec::new(),
        log_count: 0,
        clock_offset_ms: 0,
    })
}

/// Over a connection without a client certificate: the domain's roots, then the user certificate; then the client's own.
async fn ask_for_certificate(state: &mut State, deadline: Instant) -> Result<()> {
    let account = &state.account;
    let domain: Domain = account.domain.parse().context("the state names no domain")?;
    let node = Node::new(&domain, &account.resolver, account.tls_ca_spki_hash, None)?;
    let done = enrol_over(&node, state, &domain, deadline).await;
    node.close().await;
    done
}

async fn enrol_over(node: &Node, state: &mut State, domain: &Domain, deadline: Instant) -> Result<()> {
    let user_key = SigningKey::from_pkcs8(&state.account.user_key.0)?;
    let mut offset = state.clock_offset_ms;
    let mut ask = async |request, service, key| {
        let question = Question { request, destination: domain.clone(), service, key, perhaps_done: false };
        let answer = question.ask(node, &mut offset, deadline).await;
        answer.map_err(|error| ClientError::NotReached(error.0))?.map_err(ClientError::from)
    };
    let service = Service::Info(InfoRequest { domain: domain.as_bytes().into() });
    let Reply::DomainInfo(info) = ask(RequestId::random(), service, None).await? else {
        return Err(ClientError::Untrusted("the node answered info with something else".into()));
    };
    pin(state, domain, &info)?;
    let enrol = Enrol {
        token: state.account.token.as_slice().into(),
        certificate_request: state.account.certificate_request.0.as_slice().into(),
    };
    let message = AccountsMessage { certificates: List::default(), request: AccountsRequest::Enrol(enrol) };
    let reply = ask(state.account.enrol_request, Service::Accounts(message), Some(&user_key)).await?;
    let Reply::Enrolled(enrolled) = reply else {
        return Err(ClientError::Untrusted("the node answered enrol with something else".into()));
    };
    state.clock_offset_ms = offset;
    let now = UnixMillis(UnixMillis::now().0.saturating_add_signed(offset));
    let roots = AsRoots::new(domain.clone(), info.as_roots.iter().map(|root| root.to_vec()).collect());
    let roots = roots.map_err(|error| ClientError::Untrusted(error.to_string()))?;
    let identity = validate_user_chain(&[enrolled.certificate.to_vec()], &roots, now)
        .map_err(|error| ClientError::Untrusted(format!("the user certificate: {error}")))?;
    if identity.public_key != user_key.public() || identity.user.to_bytes() != *enrolled.user {
        return Err(ClientError::Untrusted("the user certificate is for another key or user".into()));
    }
    let account = &mut state.account;
    let client = identity.user.client(&account.device).context("the device's name was checked")?;
    let client_key = SigningKey::from_pkcs8(&account.client_key.0)?;
    let certificate = issue_client(&user_key, &enrolled.certificate, &client, client_key.public(), now)
        .map_err(|error| Fault::because("could not issue the client's certificate", error))?;
    account.user_certificate = Blob(enrolled.certificate.into_vec());
    account.client_certificate = Blob(certificate);
    account.client = client.to_string();
    Ok(())
}

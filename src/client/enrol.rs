//! Enrolment: from an invitation to a client with certificates, a queue and published KeyPackages (S20).
//!
//! All keys and request ids are on disk before anything is sent, and every step can be repeated: the node answers a repeat of a
//! request id as before. So an enrolment that was interrupted is taken up by running it again with the same invitation.

use std::path::Path;

use tokio::time::Instant;

use super::connection::Node;
use super::core::Result;
use super::error::ClientError;
use super::mls::Provider;
use super::outbox::Question;
use super::renewal::{pin, tls_pins};
use super::state::{Account, Blob, Origin, Queue, State, Store};
use super::{Client, ClientSettings};
use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{Context as _, Domain, Fault, UnixMillis, UserUri};
use crate::identity::chain::{AsRoots, validate_user_chain};
use crate::identity::issue::{issue_client, user_csr};
use crate::wire::accounts::{AccountsMessage, AccountsRequest, Enrol};
use crate::wire::info::{DomainInfo, InfoRequest};
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
        check_device_name(device)?;
        let store = Store::open(dir)?;
        let (mut state, values) = match store.load()? {
            Some((state, _)) if state.account.complete => {
                return Err(ClientError::Invalid(format!("{} already holds {}", dir.display(), state.account.client)));
            }
            Some(loaded) if is_of(&loaded.0.account, invitation, device) => loaded,
            Some(_) => {
                return Err(ClientError::Invalid(format!(
                    "{} holds an unfinished enrolment with another invitation or device name",
                    dir.display()
                )));
            }
            None => (invited_state(invitation, device, &settings)?, Default::default()),
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
    pub(super) async fn finish_enrolment(&self, deadline: Instant) -> Result<()> {
        let (queue, request) = self.transact(|core| Ok((core.state.queue.clone(), core.state.account.queue_request))).await?;
        if queue.is_none() {
            let certificates = self.certificates();
            let create = QsRequest::Create(CreateQueue { owner_key: self.owner_key().public().into() });
            let service = Service::Qs(QsMessage { sender: QsSender::Client(certificates), request: create });
            let destination = self.uri().domain().clone();
            let question = Question { request, destination, service, key: Some(self.leaf_key()), perhaps_done: true };
            let answer = self.shared.put(&question, deadline).await.map_err(|error| ClientError::NotReached(error.0))?;
            let Reply::QueueCreated(created) = answer? else {
                return Err(ClientError::Untrusted("the node answered a new queue with something else".into()));
            };
            self.transact(move |core| {
                core.state.queue =
                    Some(Queue { id: created.queue_id, generation: created.generation, retiring: None, next: 1, acked: 0 });
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

/// Whether an unfinished account is being enrolled with this invitation.
fn is_of(account: &Account, invitation: &Invitation, device: &str) -> bool {
    matches!(&account.origin, Origin::Invitation { token, .. } if *token == invitation.token) && account.device == device
}

/// A state with all keys made and nothing asked.
fn invited_state(invitation: &Invitation, device: &str, settings: &ClientSettings) -> Result<State> {
    let user_key = SigningKey::generate()?;
    let name = UserUri::new(&invitation.domain, NAME_IN_REQUEST).context("a plain word is a name")?;
    let origin = Origin::Invitation {
        token: invitation.token,
        request: RequestId::random(),
        certificate_request: Blob(user_csr(&user_key, &name)?),
    };
    let mut state = new_state(device, origin, settings)?;
    state.account.domain = invitation.domain.to_string();
    state.account.tls_ca_spki_hash = invitation.tls_ca_spki_hash;
    state.account.user_key = kept(&user_key);
    Ok(state)
}

pub(super) fn kept(key: &SigningKey) -> Blob {
    Blob(key.pkcs8().expose().to_vec())
}

/// A state with the client's own keys. Which domain and user it is of is not known yet.
pub(super) fn new_state(device: &str, origin: Origin, settings: &ClientSettings) -> Result<State> {
    let account = Account {
        domain: String::new(),
        device: device.to_owned(),
        origin,
        tls_ca_spki_hash: [0; 32],
        resolver: settings.resolver.clone(),
        queue_request: RequestId::random(),
        user_key: Blob::default(),
        client_key: kept(&SigningKey::generate()?),
        owner_key: kept(&SigningKey::generate()?),
        user_certificate: Blob::default(),
        client_certificate: Blob::default(),
        client: String::new(),
        key_packages: settings.key_packages,
        complete: false,
        rejoin: false,
        hold_invitations: false,
    };
    Ok(State {
        account,
        queue: None,
        key_packages: Vec::new(),
        devices: [device.to_owned()].into(),
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

/// Asks the node of the state's domain, over a connection without a client certificate, what the domain publishes, and pins it.
/// Returns the domain's roots and the time as the node has it.
pub(super) async fn pin_own_domain(state: &mut State, deadline: Instant) -> Result<(AsRoots, UnixMillis)> {
    let account = &state.account;
    let domain: Domain = account.domain.parse().context("the state names no domain")?;
    let node = Node::new(&domain, &account.resolver, &tls_pins(state), None)?;
    let asked = ask_info(&node, &domain, &mut state.clock_offset_ms, deadline).await;
    node.close().await;
    let info = asked?;
    let now = UnixMillis(UnixMillis::now().0.saturating_add_signed(state.clock_offset_ms));
    pin(state, &domain, &info, now)?;
    Ok((roots_of(&domain, info)?, now))
}

fn roots_of(domain: &Domain, info: DomainInfo) -> Result<AsRoots> {
    let roots = AsRoots::new(domain.clone(), info.as_roots.into_iter().map(Opaque::into_vec).collect());
    roots.map_err(|error| ClientError::Untrusted(error.to_string()))
}

async fn ask_info(node: &Node, domain: &Domain, offset: &mut i64, deadline: Instant) -> Result<DomainInfo> {
    let service = Service::Info(InfoRequest { domain: domain.as_bytes().into() });
    let question =
        Question { request: RequestId::random(), destination: domain.clone(), service, key: None, perhaps_done: false };
    let answer = question.ask(node, offset, deadline).await.map_err(|error| ClientError::NotReached(error.0))?;
    match answer? {
        Reply::DomainInfo(info) => Ok(info),
        _ => Err(ClientError::Untrusted("the node answered info with something else".into())),
    }
}

/// Over a connection without a client certificate: the domain's roots, then the user certificate; then the client's own.
async fn ask_for_certificate(state: &mut State, deadline: Instant) -> Result<()> {
    let account = &state.account;
    let domain: Domain = account.domain.parse().context("the state names no domain")?;
    let node = Node::new(&domain, &account.resolver, &tls_pins(state), None)?;
    let done = enrol_over(&node, state, &domain, deadline).await;
    node.close().await;
    done
}

async fn enrol_over(node: &Node, state: &mut State, domain: &Domain, deadline: Instant) -> Result<()> {
    let Origin::Invitation { token, request, certificate_request } = state.account.origin.clone() else {
        return Err(Fault::new("only an invitation gets a certificate").into());
    };
    let user_key = SigningKey::from_pkcs8(&state.account.user_key.0)?;
    let mut offset = state.clock_offset_ms;
    let info = ask_info(node, domain, &mut offset, deadline).await?;
    pin(state, domain, &info, UnixMillis(UnixMillis::now().0.saturating_add_signed(offset)))?;
    let enrol = Enrol { token: token.as_slice().into(), certificate_request: certificate_request.0.into() };
    let message = AccountsMessage { certificates: List::default(), request: AccountsRequest::Enrol(enrol) };
    let service = Service::Accounts(message);
    let question = Question { request, destination: domain.clone(), service, key: Some(&user_key), perhaps_done: false };
    let answer = question.ask(node, &mut offset, deadline).await.map_err(|error| ClientError::NotReached(error.0))?;
    let Reply::Enrolled(enrolled) = answer? else {
        return Err(ClientError::Untrusted("the node answered enrol with something else".into()));
    };
    state.clock_offset_ms = offset;
    let now = UnixMillis(UnixMillis::now().0.saturating_add_signed(offset));
    let roots = roots_of(domain, info)?;
    let user = name_user(&mut state.account, &roots, enrolled.certificate.into_vec(), now)?;
    if user.to_bytes() == *enrolled.user {
        Ok(())
    } else {
        Err(ClientError::Untrusted("the user certificate is for another user".into()))
    }
}

/// Takes up the certificate of the account's user key, and issues this client's own (S20). Returns whose it is.
pub(super) fn name_user(account: &mut Account, roots: &AsRoots, certificate: Vec<u8>, now: UnixMillis) -> Result<UserUri> {
    let user_key = SigningKey::from_pkcs8(&account.user_key.0)?;
    let identity = validate_user_chain(std::slice::from_ref(&certificate), roots, now)
        .map_err(|error| ClientError::Untrusted(format!("the user certificate: {error}")))?;
    if identity.public_key != user_key.public() {
        return Err(ClientError::Untrusted("the user certificate is for another key".into()));
    }
    let client = identity.user.client(&account.device).context("the device's name was checked")?;
    let client_key = SigningKey::from_pkcs8(&account.client_key.0)?;
    account.client_certificate = Blob(
        issue_client(&user_key, &certificate, &client, client_key.public(), now)
            .map_err(|error| Fault::because("could not issue the client's certificate", error))?,
    );
    account.user_certificate = Blob(certificate);
    account.client = client.to_string();
    Ok(identity.user)
}

/// Refuses a name that no client's URI can carry, before anything is used up.
pub(super) fn check_device_name(device: &str) -> Result<()> {
    let anyone: UserUri = "mimi://a.example/u/anyone".parse().context("a plain word is a name")?;
    anyone
        .client(device)
        .map(drop)
        .map_err(|_| ClientError::Invalid(format!("{device:?} is no device name: want letters a-z, digits, '-', '_' and '.'")))
}

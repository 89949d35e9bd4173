//! A user's devices and account: pairing a further one, coming back after a loss, removing one that is gone (S19, X1, X5, X6).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::time::Instant;

use super::core::Result;
use super::enrol::{check_device_name, name_user, new_state, pin_own_domain};
use super::error::ClientError;
use super::mls::Provider;
use super::pairing::{Handover, PairingRequest, UserSecrets};
use super::state::{Blob, GroupStatus, Origin, State, Store};
use super::{Client, ClientSettings};
use crate::base::crypto::SigningKey;
use crate::base::{ClientUri, Context as _, Domain, Fault, GroupUri, limits};
use crate::identity::chain::validate_client_chain;
use crate::identity::issue::issue_client;
use crate::wire::accounts::{AccountsMessage, AccountsRequest, BlockedName, RevokeClient};
use crate::wire::ds::DsRequest;
use crate::wire::error::{ErrorCode, Retry};
use crate::wire::request::Service;
use crate::wire::{Opaque, Reply};

/// A new device's wish to become one of a user's, to be answered on a device that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairing {
    /// The line to paste into the other device.
    pub line: String,
    /// What both devices show: equal codes mean that nobody exchanged the line on the way.
    pub code: String,
}

/// The answer to a [`Pairing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairingAnswer {
    /// The line to paste into the new device. Only that one can read it.
    pub line: String,
    /// See [`Pairing::code`].
    pub code: String,
    /// Who the new device will be.
    pub client: ClientUri,
}

/// One of a user's devices, as far as another one knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The client.
    pub client: ClientUri,
    /// In how many of this client's groups it is.
    pub groups: usize,
}

/// What became of looking for a user's groups.
#[derive(Debug, Default)]
pub struct Rejoined {
    /// Groups that this client is in now and was not before.
    pub joined: Vec<GroupUri>,
    /// Hubs that could not be asked and groups that could not be joined, each with the reason.
    pub failed: Vec<(String, ClientError)>,
}

impl Client {
    /// Begins to make `dir` a further device of a user: makes its keys and returns what to show to one of the user's devices.
    /// Asked again, it returns the same. Nothing is sent.
    pub fn request_pairing(dir: &Path, device: &str, settings: &ClientSettings) -> Result<Pairing> {
        check_device_name(device)?;
        let store = Store::open(dir)?;
        let request = match store.load()? {
            Some((state, _)) => pending_request(&state, device, dir)?,
            None => {
                let mut state = new_state(device, Origin::Backup, settings)?;
                let client_key = SigningKey::from_pkcs8(&state.account.client_key.0)?;
                let (request, private_key) = PairingRequest::new(device, &client_key)?;
                state.account.origin = Origin::Device { request: Blob(request.encoded()), private_key: Blob(private_key) };
                store.save(&state, &Default::default())?;
                request
            }
        };
        Ok(Pairing { line: request.line(), code: request.code() })
    }

    /// Makes the device whose pairing request `line` is one of this client's user: issues its certificate, and seals that and
    /// the user key to it. **Whoever holds the answer's private key becomes the user**: compare the codes first.
    pub async fn answer_pairing(&self, line: &str) -> Result<PairingAnswer> {
        let request = PairingRequest::from_line(line).map_err(|error| ClientError::Invalid(error.to_string()))?;
        check_device_name(request.device())?;
        let client = self.uri().user().client(request.device()).context("the device's name was checked")?;
        if &client == self.uri() {
            return Err(ClientError::Invalid(format!("{client} is this device: give the new one another name")));
        }
        let (code, now) = (request.code(), self.shared.now());
        let answered = client.clone();
        let line = self
            .transact(move |core| {
                let account = &core.state.account;
                let user_key = SigningKey::from_pkcs8(&account.user_key.0)?;
                let certificate = issue_client(&user_key, &account.user_certificate.0, &answered, request.client_key(), now)
                    .map_err(|error| Fault::because("could not issue the new device's certificate", error))?;
                let handover = Handover { user: core.user_secrets()?, client_certificate: certificate.into() };
                let line = request.answer(&handover)?;
                core.state.devices.insert(request.device().to_owned());
                core.save()?;
                Ok(line)
            })
            .await?;
        Ok(PairingAnswer { line, code, client })
    }

    /// Finishes what [`Client::request_pairing`] began, with the answer of the user's other device: becomes that user's client,
    /// gets a queue and KeyPackages, and joins the user's groups as far as their hubs can be reached; the others later, by
    /// itself. An interrupted call is taken up by another one.
    pub async fn accept_pairing(dir: &Path, line: &str, settings: ClientSettings) -> Result<Self> {
        let deadline = Instant::now() + settings.request_deadline;
        let store = Store::open(dir)?;
        let Some((mut state, values)) = store.load()? else {
            return Err(ClientError::Invalid(format!(
                "{} has asked for no pairing: `device request` comes first",
                dir.display()
            )));
        };
        if state.account.complete {
            return Err(ClientError::Invalid(format!("{} already holds {}", dir.display(), state.account.client)));
        }
        let Origin::Device { request, private_key } = state.account.origin.clone() else {
            return Err(ClientError::Invalid(format!("{} holds an unfinished enrolment", dir.display())));
        };
        if !settings.resolver.is_empty() {
            state.account.resolver.clone_from(&settings.resolver);
        }
        if state.account.client.is_empty() {
            let invalid = |error: super::pairing::InvalidLine| ClientError::Invalid(error.to_string());
            let request = PairingRequest::decoded(&request.0).map_err(invalid)?;
            let Handover { user, client_certificate } = request.open(line, &private_key.0).map_err(invalid)?;
            take_up(&mut state, &user)?;
            let (roots, now) = pin_own_domain(&mut state, deadline).await?;
            let chain = [client_certificate.into_vec(), user.user_certificate.into_vec()];
            let not_trusted = |why: String| ClientError::Untrusted(format!("the other device's answer: {why}"));
            let identity = validate_client_chain(&chain, &roots, now).map_err(|error| not_trusted(error.to_string()))?;
            let own_key = SigningKey::from_pkcs8(&state.account.client_key.0)?;
            let user_key = SigningKey::from_pkcs8(&state.account.user_key.0)?;
            if identity.public_key != own_key.public() || identity.client.device() != state.account.device {
                return Err(not_trusted("the certificate is for another key or device".into()));
            }
            if identity.user_key_hash != crate::identity::revoked::key_hash(user_key.public()) {
                return Err(not_trusted("the user key is not the certificate's".into()));
            }
            let [client_certificate, user_certificate] = chain;
            let account = &mut state.account;
            (account.client_certificate, account.user_certificate) = (Blob(client_certificate), Blob(user_certificate));
            account.client = identity.client.to_string();
            account.origin = Origin::Device { request: Blob(request.encoded()), private_key: Blob::default() };
            store.save(&state, &values)?;
        }
        let client = Self::start(store, state, Provider::with_values(values), settings).await?;
        client.arrive(deadline).await?;
        Ok(client)
    }

    /// Makes the client `device` anew in `dir` from a backup of its user's key ([`Client::backup`]): new client keys, queue and
    /// KeyPackages under the same name; then it joins the user's groups (X6). The hubs remove what was there under that name.
    pub async fn recover(dir: &Path, backup: &str, device: &str, settings: ClientSettings) -> Result<Self> {
        let deadline = Instant::now() + settings.request_deadline;
        check_device_name(device)?;
        let user = UserSecrets::from_backup(backup).map_err(|error| ClientError::Invalid(error.to_string()))?;
        let store = Store::open(dir)?;
        let (mut state, values) = match store.load()? {
            Some((state, _)) if state.account.complete => {
                return Err(ClientError::Invalid(format!("{} already holds {}", dir.display(), state.account.client)));
            }
            Some(loaded) if loaded.0.account.origin == Origin::Backup && loaded.0.account.device == device => loaded,
            Some(_) => return Err(ClientError::Invalid(format!("{} holds an unfinished enrolment", dir.display()))),
            None => (new_state(device, Origin::Backup, &settings)?, Default::default()),
        };
        if !settings.resolver.is_empty() {
            state.account.resolver.clone_from(&settings.resolver);
        }
        take_up(&mut state, &user)?;
        if state.account.client.is_empty() {
            let (roots, now) = pin_own_domain(&mut state, deadline).await?;
            name_user(&mut state.account, &roots, user.user_certificate.into_vec(), now)?;
        }
        store.save(&state, &values)?;
        let client = Self::start(store, state, Provider::with_values(values), settings).await?;
        client.arrive(deadline).await?;
        Ok(client)
    }

    /// Queue and KeyPackages; then the user's groups, which the chores go on with if it does not succeed now.
    async fn arrive(&self, deadline: Instant) -> Result<()> {
        self.transact(|core| {
            core.state.account.rejoin = true;
            core.save()
        })
        .await?;
        self.finish_enrolment(deadline).await?;
        match self.rejoin_by(deadline).await {
            Err(error @ ClientError::Fault(_)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the user's groups are joined later");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// A line with the user key and what belongs to it. **Whoever has it is the user**: it is for the user's eyes, on a medium
    /// that outlives the device.
    pub async fn backup(&self) -> Result<String> {
        self.transact(|core| Ok(core.user_secrets()?.backup())).await
    }

    /// The user's devices, as far as this one knows: those it paired or was told of, and those in its groups.
    pub async fn devices(&self) -> Result<Vec<Device>> {
        self.transact(|core| {
            let mut devices: BTreeMap<ClientUri, usize> = BTreeMap::new();
            for name in &core.state.devices {
                devices.insert(core.me.user().client(name).context("the state names a device that is none")?, 0);
            }
            devices.entry(core.me.clone()).or_default();
            for group in core.groups.keys().filter(|group| core.member_of(group).is_ok()) {
                let own: BTreeSet<ClientUri> =
                    core.members_now(group).into_iter().filter(|client| client.user() == core.me.user()).collect();
                for client in own {
                    *devices.entry(client).or_default() += 1;
                }
            }
            Ok(devices.into_iter().map(|(client, groups)| Device { client, groups }).collect())
        })
        .await
    }

    /// Ends the device `name` of this client's user: its key is revoked at the user's domain, its queues are gone, and the hubs
    /// have it removed from every group (S12, X1). A device that was stolen also holds the user key: see `docs/protocol.md`.
    pub async fn remove_device(&self, name: &str) -> Result<()> {
        check_device_name(name)?;
        let client = self.uri().user().client(name).context("the device's name was checked")?;
        if &client == self.uri() {
            return Err(ClientError::Invalid("this is the device itself: use another one to remove it".into()));
        }
        match self.ask_account(AccountsRequest::RevokeClient(RevokeClient { client: client.to_bytes().into() })).await {
            Err(error) if error.code() == Some(ErrorCode::UnknownUser) => {
                return Err(ClientError::Invalid(format!("the domain knows no device {name:?} of yours, or not any more")));
            }
            done => drop(done?),
        }
        let name = name.to_owned();
        self.transact(move |core| {
            core.state.devices.remove(&name);
            core.save()
        })
        .await
    }

    /// Has claims and Welcomes of `name`, a user's URI or a domain, refused from now on (X5).
    pub async fn block(&self, name: &str) -> Result<()> {
        self.ask_account(AccountsRequest::Block(BlockedName { name: name.as_bytes().into() })).await.map(drop)
    }

    /// Takes a block back (X5).
    pub async fn unblock(&self, name: &str) -> Result<()> {
        self.ask_account(AccountsRequest::Unblock(BlockedName { name: name.as_bytes().into() })).await.map(drop)
    }

    /// The domains whose hubs deliver to this client's user (X6), its own included.
    pub async fn hubs(&self) -> Result<Vec<Domain>> {
        self.hubs_by(self.deadline()).await
    }

    async fn hubs_by(&self, deadline: Instant) -> Result<Vec<Domain>> {
        let Reply::Hubs(hubs) = self.ask_account_by(AccountsRequest::Hubs, deadline).await? else {
            return Err(ClientError::Untrusted("the node answered hubs with something else".into()));
        };
        let named = hubs.iter().filter_map(|hub| std::str::from_utf8(hub).ok()?.parse().ok());
        let all: BTreeSet<Domain> = named.chain([self.uri().domain().clone()]).collect();
        Ok(all.into_iter().collect())
    }

    /// Joins the groups that this client's user is in and this client is not, at every hub that delivers to the user (X6).
    pub async fn rejoin(&self) -> Result<Rejoined> {
        self.rejoin_by(self.deadline()).await
    }

    pub(super) async fn rejoin_by(&self, deadline: Instant) -> Result<Rejoined> {
        let mut rejoined = Rejoined::default();
        for hub in self.hubs_by(deadline).await? {
            let soon = deadline.min(Instant::now() + limits::CLIENT_REJOIN_TIMEOUT);
            match self.groups_at(&hub, soon).await {
                Ok(groups) => {
                    for group in groups {
                        self.rejoin_one(group, deadline, &mut rejoined).await?;
                    }
                }
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => rejoined.failed.push((hub.to_string(), error)),
            }
        }
        // Who is refused for good will not be let in later either.
        let is_final = |error: &ClientError| error.code().is_some_and(|code| code.retry() == Retry::Never);
        if rejoined.failed.iter().all(|(_, error)| is_final(error)) {
            self.transact(|core| {
                core.state.account.rejoin = false;
                core.save()
            })
            .await?;
        }
        Ok(rejoined)
    }

    async fn rejoin_one(&self, group: GroupUri, deadline: Instant, rejoined: &mut Rejoined) -> Result<()> {
        let is_in = {
            let group = group.clone();
            let at_home = |status| matches!(status, GroupStatus::Member | GroupStatus::Creating | GroupStatus::Leaving);
            self.transact(move |core| Ok(core.state.groups.get(&group.to_string()).is_some_and(|kept| at_home(kept.status))))
                .await?
        };
        if is_in {
            return Ok(());
        }
        let soon = deadline.min(Instant::now() + limits::CLIENT_REJOIN_TIMEOUT);
        match self.run_join(&group, false, soon).await {
            Ok(_) => rejoined.joined.push(group),
            Err(error @ ClientError::Fault(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(%group, %error, "a group of the user could not be joined");
                rejoined.failed.push((group.to_string(), error));
            }
        }
        Ok(())
    }

    /// The groups of `hub` that this client's user is in.
    async fn groups_at(&self, hub: &Domain, deadline: Instant) -> Result<Vec<GroupUri>> {
        let service = self.transact(|core| core.user_request(DsRequest::ListGroups)).await?;
        match self.ask_with(&self.shared.user_key, hub, service, deadline).await? {
            Reply::Groups(groups) => {
                let named = groups.iter().filter_map(|group| GroupUri::from_bytes(group).ok());
                Ok(named.filter(|group| group.hub() == hub).collect())
            }
            _ => Err(ClientError::Untrusted(format!("{hub} answered list_groups with something else"))),
        }
    }

    async fn ask_account(&self, request: AccountsRequest) -> Result<Reply> {
        self.ask_account_by(request, self.deadline()).await
    }

    pub(super) async fn ask_account_by(&self, request: AccountsRequest, deadline: Instant) -> Result<Reply> {
        let certificates = self.chain().last().map(|der| Opaque::from(der.as_slice())).into_iter().collect();
        let service = Service::Accounts(AccountsMessage { certificates, request });
        self.ask_with(&self.shared.user_key, self.uri().domain(), service, deadline).await
    }
}

impl super::core::Core {
    fn user_secrets(&self) -> Result<UserSecrets> {
        let account = &self.state.account;
        let domain = account.domain.parse().context("the state names no domain")?;
        Ok(UserSecrets::new(&domain, account.tls_ca_spki_hash, &account.user_key.0, &account.user_certificate.0))
    }
}

/// Takes up a user key and where it is at home. Whose it is has to be checked.
fn take_up(state: &mut State, user: &UserSecrets) -> Result<()> {
    let domain = user.domain().ok_or_else(|| ClientError::Invalid("what was handed over names no domain".into()))?;
    SigningKey::from_pkcs8(&user.user_key).map_err(|_| ClientError::Invalid("what was handed over holds no key".into()))?;
    let account = &mut state.account;
    account.domain = domain.to_string();
    account.tls_ca_spki_hash = user.tls_ca_spki_hash;
    account.user_key = Blob(user.user_key.to_vec());
    Ok(())
}

fn pending_request(state: &State, device: &str, dir: &Path) -> Result<PairingRequest> {
    let account = &state.account;
    if account.complete || !account.client.is_empty() {
        return Err(ClientError::Invalid(format!("{} already holds {}", dir.display(), account.client)));
    }
    match &account.origin {
        Origin::Device { request, .. } if account.device == device => {
            Ok(PairingRequest::decoded(&request.0).context("the pairing request that is kept is damaged")?)
        }
        _ => Err(ClientError::Invalid(format!("{} holds an unfinished enrolment, or one under another name", dir.display()))),
    }
}

//! Users enrolled by hand, who hold their keys as seeds and forge their groups with [`crate::synth`]: every octet of what they
//! send is a test's to choose.

use std::time::Duration;

use hpke_rs::{Hpke, HpkePublicKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;
use mimi_node::base::crypto::{SigningKey, sha256};
use mimi_node::base::ids::{InviteId, QueueId, RequestId};
use mimi_node::base::secret::Secret;
use mimi_node::base::{ClientUri, Context as _, Domain, Fault, GroupUri, UnixMillis, UserUri};
use mimi_node::identity::issue::{issue_client, user_csr};
use mimi_node::transport::ClientIdentity;
use mimi_node::wire::accounts::{AccountsMessage, AccountsRequest, Enrol};
use mimi_node::wire::ds::{
    ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupUpdate, SendMessage,
};
use mimi_node::wire::info::{DomainInfo, InfoRequest};
use mimi_node::wire::keys::{KeysMessage, KeysRequest};
use mimi_node::wire::qs::{
    CreateQueue, FetchEntries, Invite, QsMessage, QsRequest, QsSender, QueueBinding, QueueEntry, QueueInformation,
    SealedQueueInformation,
};
use mimi_node::wire::{ClientRequest, Content, Invitation, List, Opaque, Rejection, Reply, Response, Service, decode, encode};
use rand::Rng as _;
use rand_chacha::ChaCha20Rng;
use rcgen::KeyPair;

use crate::raw::{Ended, Raw};
use crate::synth::{Capabilities, Change, Extension, Forged, Identity, KeyPackage, SynthError, SynthGroup};
use crate::world::World;

/// The KeyPackage extension with a queue config.
const QUEUE_CONFIG_EXTENSION: u16 = 0xF0C0;
const EXTENSION_EXTERNAL_SENDERS: u16 = 5;
/// The PKCS#8 wrapping (RFC 8410) of an Ed25519 seed.
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// An Ed25519 key from its seed.
pub fn key_of_seed(seed: &[u8; 32]) -> Result<SigningKey, Fault> {
    SigningKey::from_pkcs8(&[&PKCS8_ED25519[..], seed].concat())
}

/// A device's key and the chain for it.
#[derive(Clone)]
pub struct Device {
    /// Whose.
    pub uri: ClientUri,
    /// The key's seed.
    pub seed: [u8; 32],
    /// The key.
    pub key: SigningKey,
    /// DER: client certificate, user certificate.
    pub chain: Vec<Vec<u8>>,
}

impl Device {
    /// As it goes into leaves.
    pub fn identity(&self) -> Identity {
        Identity::new(&self.seed, &self.chain)
    }

    /// The chain as requests carry it.
    pub fn certificates(&self) -> List<Opaque> {
        self.chain.iter().map(|der| Opaque::from(der.as_slice())).collect()
    }

    /// As TLS presents it.
    pub fn tls(&self) -> ClientIdentity {
        ClientIdentity { chain: self.chain.clone(), key: Secret::new(self.key.pkcs8().expose().to_vec()) }
    }
}

/// An enrolled user with one device, its queue and its connection to its own node.
pub struct Person {
    /// The user.
    pub user: UserUri,
    /// The user's key.
    pub user_key: SigningKey,
    /// The user's certificate.
    pub user_certificate: Vec<u8>,
    /// The device.
    pub device: Device,
    /// The queue's owner key.
    pub owner_key: SigningKey,
    /// The queue.
    pub queue: QueueId,
    /// What the own domain publishes.
    pub info: DomainInfo,
    /// The connection to the own node.
    pub home: Raw,
}

impl Person {
    /// Invites and enrols `name` at a domain whose node runs. Keys come from `rng`.
    pub async fn enrol(world: &World, index: usize, name: &str, rng: &mut ChaCha20Rng) -> Result<Self, Fault> {
        let invitation = world.invite(index, name).await?;
        let (user_key, owner_key) = (key_of_seed(&rng.random())?, key_of_seed(&rng.random())?);
        let stranger = stranger(world, index, &invitation).await?;
        let service = Service::Info(InfoRequest { domain: invitation.domain.as_bytes().into() });
        let info = Content::new(&invitation.domain, RequestId::random(), UnixMillis::now(), service).unsigned();
        let Ok(Reply::DomainInfo(info)) = ask(&stranger, &info).await? else { return Err(Fault::new("no info")) };
        let answer = ask(&stranger, &enrol_request(&invitation, &user_key)?).await?;
        let Ok(Reply::Enrolled(enrolled)) = answer else { return Err(Fault::new(format!("not enrolled: {answer:?}"))) };
        let user = UserUri::from_bytes(&enrolled.user).context("the node names no user")?;
        let user_certificate = enrolled.certificate.into_vec();
        let device = device_of(&user, &user_key, &user_certificate, "phone", rng.random())?;
        let home = home(world, index, &invitation, &device).await?;
        let create = QsRequest::Create(CreateQueue { owner_key: owner_key.public().into() });
        let service = Service::Qs(QsMessage { sender: QsSender::Client(device.certificates()), request: create });
        let create = Content::new(user.domain(), RequestId::random(), UnixMillis::now(), service).sign(&device.key);
        let Ok(Reply::QueueCreated(queue)) = ask(&home, &create).await? else { return Err(Fault::new("no queue")) };
        Ok(Self { user, user_key, user_certificate, device, owner_key, queue: queue.queue_id, info, home })
    }

    /// The own domain.
    pub fn domain(&self) -> &Domain {
        self.user.domain()
    }

    /// Connects anew, as after a restart of the node.
    pub async fn reconnect(&mut self, world: &World, index: usize, pin: [u8; 32]) -> Result<(), Fault> {
        let site = world.site(index);
        let dialled = Raw::client(site.client, &site.domain, pin, Some(&self.device.tls())).await;
        self.home = dialled.map_err(|ended| Fault::new(format!("not connected: {ended:?}")))?;
        Ok(())
    }

    /// A further device of this user, or another key for the same one.
    pub fn device(&self, name: &str, seed: [u8; 32]) -> Result<Device, Fault> {
        device_of(&self.user, &self.user_key, &self.user_certificate, name, seed)
    }

    /// Queue information of the own queue, sealed to the own QS.
    pub fn queue_config(&self, binding: QueueBinding) -> Result<ClientQueueConfig, Fault> {
        let information = QueueInformation { queue_id: self.queue, generation: 1, binding };
        let key = self.info.qs_keys.first().context("the domain publishes no QS key")?;
        let mut hpke =
            Hpke::<HpkeRustCrypto>::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm);
        let public_key = HpkePublicKey::new(key.public_key.to_vec());
        let (kem_output, ciphertext) = hpke
            .seal(&public_key, b"MIMI queue info", b"", &encode(&information), None, None, None)
            .map_err(|error| Fault::new(format!("cannot seal: {error:?}")))?;
        let sealed = SealedQueueInformation { key_id: key.key_id, kem_output: kem_output.into(), ciphertext: ciphertext.into() };
        Ok(ClientQueueConfig { qs_domain: self.domain().as_bytes().into(), client_queue_information: encode(&sealed).into() })
    }

    /// A queue config for `hub`.
    pub fn queue_for(&self, hub: &Domain) -> Result<ClientQueueConfig, Fault> {
        self.queue_config(QueueBinding::Hub(hub.as_bytes().into()))
    }

    /// A fresh KeyPackage of the device with a queue config for any hub.
    pub fn key_package(&self, rng: &mut ChaCha20Rng) -> Result<KeyPackage, Fault> {
        let expires_at_ms = UnixMillis::now().plus(Duration::from_secs(80 * 86_400)).0;
        let invite = Invite { invite_id: InviteId::random(), last_resort: 0, expires_at_ms };
        let config = self.queue_config(QueueBinding::Invite(invite))?;
        Ok(key_package(self.device.identity(), Some(&config), rng))
    }

    /// Sends a request to the own node once. `Err` only when no answer came.
    pub async fn ask(&self, request: &ClientRequest) -> Result<Result<Reply, Rejection>, Fault> {
        ask(&self.home, request).await
    }

    /// The whole answer's octets.
    pub async fn ask_octets(&self, request: &ClientRequest) -> Result<Vec<u8>, Fault> {
        self.home.exchange(&encode(request)).await.map_err(|ended| Fault::new(format!("no answer: {ended:?}")))
    }

    /// A signed request about this user's queue, by the owner key.
    pub fn queue_request(&self, request: QsRequest) -> ClientRequest {
        let service = Service::Qs(QsMessage { sender: QsSender::Owner(self.queue), request });
        Content::new(self.domain(), RequestId::random(), UnixMillis::now(), service).sign(&self.owner_key)
    }

    /// A signed request about KeyPackages, to the node of `destination`.
    pub fn keys_request(&self, destination: &Domain, request: KeysRequest) -> ClientRequest {
        let service = Service::Keys(KeysMessage { certificates: self.device.certificates(), request });
        Content::new(destination, RequestId::random(), UnixMillis::now(), service).sign(&self.device.key)
    }

    /// A request about this user's account, by the user key.
    pub fn account_request(&self, request: AccountsRequest) -> ClientRequest {
        let certificates = vec![Opaque::from(self.user_certificate.as_slice())].into();
        let service = Service::Accounts(AccountsMessage { certificates, request });
        Content::new(self.domain(), RequestId::random(), UnixMillis::now(), service).sign(&self.user_key)
    }

    /// Everything in the queue.
    pub async fn entries(&self) -> Result<Vec<QueueEntry>, Fault> {
        let mut entries: Vec<QueueEntry> = Vec::new();
        loop {
            let from = entries.last().map_or(1, |last| last.sequence + 1);
            let request = self.queue_request(QsRequest::Fetch(FetchEntries { from, max: 256 }));
            match self.ask(&request).await? {
                Ok(Reply::Entries(more)) if more.is_empty() => return Ok(entries),
                Ok(Reply::Entries(more)) => entries.extend(more),
                other => return Err(Fault::new(format!("no entries: {other:?}"))),
            }
        }
    }
}

/// A KeyPackage of any identity, with or without a queue config.
pub fn key_package(identity: Identity, config: Option<&ClientQueueConfig>, rng: &mut ChaCha20Rng) -> KeyPackage {
    let extensions: Vec<Extension> =
        config.iter().map(|config| Extension { kind: QUEUE_CONFIG_EXTENSION, data: encode(*config) }).collect();
    KeyPackage::new(identity, Capabilities::default(), &extensions, UnixMillis::now().seconds(), rng)
}

/// A device's key and certificates.
pub fn device_of(
    user: &UserUri,
    user_key: &SigningKey,
    user_certificate: &[u8],
    name: &str,
    seed: [u8; 32],
) -> Result<Device, Fault> {
    let uri = user.client(name).context("not a device's name")?;
    let key = key_of_seed(&seed)?;
    let certificate = issue_client(user_key, user_certificate, &uri, key.public(), UnixMillis::now())?;
    Ok(Device { uri, seed, key, chain: vec![certificate, user_certificate.to_vec()] })
}

/// A client certificate that the holder of a user key signs, whoever `client` is. Nothing is checked.
pub fn forge_client_certificate(
    user_key: &SigningKey,
    user_certificate: &[u8],
    client: &ClientUri,
    key: &SigningKey,
) -> Result<Vec<u8>, Fault> {
    let failed = "cannot forge a certificate";
    let pem = |key: &SigningKey| KeyPair::try_from(key.pkcs8().expose()).context(failed);
    let mut parameters = rcgen::CertificateParams::default();
    let uri = client.to_string().try_into().context(failed)?;
    parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    parameters.is_ca = rcgen::IsCa::ExplicitNoCa;
    let now = time::OffsetDateTime::now_utc();
    parameters.not_before = now - time::Duration::hours(1);
    parameters.not_after = now + time::Duration::days(30);
    let issuer_certificate = rustls::pki_types::CertificateDer::from(user_certificate);
    let issuer = rcgen::Issuer::from_ca_cert_der(&issuer_certificate, pem(user_key)?).context(failed)?;
    Ok(parameters.signed_by(&pem(key)?, &issuer).context(failed)?.der().to_vec())
}

/// A connection to a client port without a certificate.
pub async fn stranger(world: &World, index: usize, invitation: &Invitation) -> Result<Raw, Fault> {
    let site = world.site(index);
    let dialled = Raw::client(site.client, &site.domain, invitation.tls_ca_spki_hash, None).await;
    dialled.map_err(|ended| Fault::new(format!("not connected: {ended:?}")))
}

async fn home(world: &World, index: usize, invitation: &Invitation, device: &Device) -> Result<Raw, Fault> {
    let site = world.site(index);
    let dialled = Raw::client(site.client, &site.domain, invitation.tls_ca_spki_hash, Some(&device.tls())).await;
    dialled.map_err(|ended| Fault::new(format!("not connected: {ended:?}")))
}

/// The request that turns an invitation into a user.
pub fn enrol_request(invitation: &Invitation, user_key: &SigningKey) -> Result<ClientRequest, Fault> {
    let anyone = UserUri::new(&invitation.domain, "invited").context("a plain word is a name")?;
    let enrol = Enrol { token: invitation.token.as_slice().into(), certificate_request: user_csr(user_key, &anyone)?.into() };
    let service = Service::Accounts(AccountsMessage { certificates: List::default(), request: AccountsRequest::Enrol(enrol) });
    Ok(Content::new(&invitation.domain, RequestId::random(), UnixMillis::now(), service).sign(user_key))
}

/// Sends a request once. `Err` only when no answer came.
pub async fn ask(raw: &Raw, request: &ClientRequest) -> Result<Result<Reply, Rejection>, Fault> {
    let answer = raw.exchange(&encode(request)).await.map_err(|ended: Ended| Fault::new(format!("no answer: {ended:?}")))?;
    Ok(decode::<Response>(&answer).context("the answer is malformed")?.into_result())
}

/// A forged group on its hub, and how its requests are made.
#[derive(Clone)]
pub struct Room {
    /// Its name.
    pub uri: GroupUri,
    /// Its state as the hub should have it.
    pub group: SynthGroup,
}

impl Room {
    /// The group as `creator` forges it, with the request that creates it. The hub is the creator's own domain.
    pub fn forge(creator: &Person, rng: &mut ChaCha20Rng) -> Result<(Self, ClientRequest), Fault> {
        let uri = GroupUri::new(creator.domain(), &rng.random());
        let package = creator.key_package(rng)?;
        let mut group = SynthGroup::create(&uri.to_bytes(), &package, &[external_senders(&creator.info)], rng.random());
        let group_info = group.group_info_with_tree(0).context("leaf 0 is there")?;
        let request = create_request(creator, &uri, &package, group_info)?;
        Ok((Self { uri, group }, request))
    }

    /// Forges a group and creates it.
    pub async fn create(creator: &Person, rng: &mut ChaCha20Rng) -> Result<Self, Fault> {
        let (room, request) = Self::forge(creator, rng)?;
        match creator.ask(&request).await? {
            Ok(Reply::Done) => Ok(room),
            other => Err(Fault::new(format!("the group was not created: {other:?}"))),
        }
    }

    /// A request by a leaf of the group.
    pub fn request(&self, leaf: u32, key: &SigningKey, request: DsRequest) -> ClientRequest {
        self.request_by(DsSenderId::LeafIndex(leaf), key, request)
    }

    /// A request by any sender.
    pub fn request_by(&self, sender_id: DsSenderId, key: &SigningKey, request: DsRequest) -> ClientRequest {
        let service = Service::Ds(DsMessage { sender_id, certificates: List::default(), request });
        Content::new(self.uri.hub(), RequestId::random(), UnixMillis::now(), service).sign(key)
    }

    /// A forged commit as add_users.
    pub fn add_body(&self, forged: &Forged) -> DsRequest {
        let welcomes = if forged.welcome.is_empty() { vec![] } else { vec![Opaque::from(forged.welcome.as_slice())] };
        DsRequest::AddUsers(GroupAdd {
            group_id: self.uri.to_bytes().into(),
            group_update: update_of(forged),
            welcomes: welcomes.into(),
        })
    }

    /// A forged commit as update_client.
    pub fn update_body(&self, forged: &Forged) -> DsRequest {
        DsRequest::UpdateClient(self.commit_body(forged))
    }

    /// A forged commit as remove_users.
    pub fn remove_body(&self, forged: &Forged) -> DsRequest {
        DsRequest::RemoveUsers(self.commit_body(forged))
    }

    fn commit_body(&self, forged: &Forged) -> GroupCommit {
        GroupCommit { group_id: self.uri.to_bytes().into(), group_update: update_of(forged) }
    }

    /// A message as send_message.
    pub fn message_body(&self, message: Vec<u8>) -> DsRequest {
        DsRequest::SendMessage(SendMessage { group_id: self.uri.to_bytes().into(), message: message.into() })
    }

    /// Forges a commit without entering its epoch: for one that is to be refused.
    pub fn try_commit(&self, committer: u32, change: Change) -> Result<Forged, SynthError> {
        self.group.clone().commit(committer, change)
    }

    /// Adds people and enters the new epoch; the hub must accept. Returns their leaves.
    pub async fn add(&mut self, by: (&Person, u32), added: &[&Person], rng: &mut ChaCha20Rng) -> Result<Vec<u32>, Fault> {
        let packages = added.iter().map(|person| person.key_package(rng)).collect::<Result<Vec<_>, _>>()?;
        let before = self.group.leaves();
        let forged = self.group.add(by.1, packages).context("cannot forge an Add")?;
        let request = self.request(by.1, &by.0.device.key, self.add_body(&forged));
        accepted(by.0.ask(&request).await?, &forged)?;
        Ok(self.group.leaves().into_iter().filter(|leaf| !before.contains(leaf)).collect())
    }

    /// Commits an update and enters the new epoch; the hub must accept.
    pub async fn update(&mut self, by: (&Person, u32)) -> Result<Forged, Fault> {
        let forged = self.group.update(by.1).context("cannot forge an update")?;
        let request = self.request(by.1, &by.0.device.key, self.update_body(&forged));
        accepted(by.0.ask(&request).await?, &forged)?;
        Ok(forged)
    }

    /// Removes leaves and enters the new epoch; the hub must accept.
    pub async fn remove(&mut self, by: (&Person, u32), leaves: &[u32]) -> Result<Forged, Fault> {
        let change = Change { remove: leaves.to_vec(), ..Change::default() };
        let forged = self.group.commit(by.1, change).context("cannot forge a Remove")?;
        let request = self.request(by.1, &by.0.device.key, self.remove_body(&forged));
        accepted(by.0.ask(&request).await?, &forged)?;
        Ok(forged)
    }
}

/// The answer must be the receipt for this commit.
pub fn accepted(answer: Result<Reply, Rejection>, forged: &Forged) -> Result<(), Fault> {
    match answer {
        Ok(Reply::CommitAccepted(receipt)) if receipt.content.commit_hash == sha256(&forged.commit) => Ok(()),
        other => Err(Fault::new(format!("the commit was not accepted: {other:?}"))),
    }
}

/// Commit and GroupInfo as requests carry them.
pub fn update_of(forged: &Forged) -> GroupUpdate {
    GroupUpdate { commit: forged.commit.as_slice().into(), group_info: forged.group_info.as_slice().into() }
}

/// The `external_senders` extension with a domain's DS.
pub fn external_senders(info: &DomainInfo) -> Extension {
    let sender = Opaque::from(&info.external_sender[..]);
    Extension { kind: EXTENSION_EXTERNAL_SENDERS, data: encode(&sender) }
}

/// A create_group with these parts.
pub fn create_request(
    creator: &Person,
    uri: &GroupUri,
    package: &KeyPackage,
    group_info: Vec<u8>,
) -> Result<ClientRequest, Fault> {
    let request = DsRequest::CreateGroup(CreateGroup {
        group_id: uri.to_bytes().into(),
        key_package: package.message().into(),
        client_queue_config: creator.queue_for(creator.domain())?,
        group_info: group_info.into(),
    });
    let sender_id = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
    let service = Service::Ds(DsMessage { sender_id, certificates: List::default(), request });
    Ok(Content::new(creator.domain(), RequestId::random(), UnixMillis::now(), service).sign(&creator.device.key))
}

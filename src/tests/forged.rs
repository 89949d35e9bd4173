//! Devices that hold their keys as seeds, and the groups that they forge ([`crate::synth`]): every octet of what they send is a
//! test's to choose, at the cost of a few hashes and signatures.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;

use crate::base::crypto::SigningKey;
use crate::base::ids::RequestId;
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::AsRoot;
use crate::identity::chain::{AsRoots, validate_client_chain};
use crate::identity::issue::{issue_client, user_csr};
use crate::mls::QUEUE_CONFIG_EXTENSION;
use crate::synth::{Capabilities, Change, Extension, Forged, Identity, KeyPackage, SynthGroup};
use crate::wire::accounts::{AccountsMessage, AccountsRequest};
use crate::wire::ds::*;
use crate::wire::keys::{KeysMessage, KeysRequest};
use crate::wire::{ClientRequest, Content, List, Opaque, Service, encode};

/// The PKCS#8 wrapping (RFC 8410) of an Ed25519 seed.
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The GroupContext extension that names the DS (RFC 9420 §12.1.8.1).
const EXTENSION_EXTERNAL_SENDERS: u16 = 5;

fn key_of_seed(seed: &[u8; 32]) -> SigningKey {
    SigningKey::from_pkcs8(&[&PKCS8_ED25519[..], seed].concat()).expect("a key")
}

/// A user's device: its keys and certificates.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) uri: ClientUri,
    /// The device's key, which signs its leaves and requests.
    pub(crate) key: SigningKey,
    pub(crate) seed: [u8; 32],
    /// The user's key and certificate (DER).
    pub(crate) user_key: SigningKey,
    pub(crate) user_certificate: Vec<u8>,
    /// DER: client certificate, user certificate.
    pub(crate) chain: Vec<Vec<u8>>,
}

impl Device {
    /// The phone of a new user of the root's domain.
    pub(crate) fn new(root: &AsRoot, user: &str) -> Self {
        let user = UserUri::new(root.domain(), user).expect("a user");
        let user_key = key_of_seed(&rand::rng().random());
        let request = user_csr(&user_key, &user).expect("a request");
        let user_certificate = root.issue_user(&request, &user, UnixMillis::now()).expect("a certificate");
        Self::of_user(&user, user_key, user_certificate, "phone")
    }

    fn of_user(user: &UserUri, user_key: SigningKey, user_certificate: Vec<u8>, device: &str) -> Self {
        let seed = rand::rng().random();
        let (uri, key) = (user.client(device).expect("a client"), key_of_seed(&seed));
        let certificate =
            issue_client(&user_key, &user_certificate, &uri, key.public(), UnixMillis::now()).expect("a certificate");
        Self { uri, key, seed, user_key, chain: vec![certificate, user_certificate.clone()], user_certificate }
    }

    /// Another device of the same user, or the same one with another key.
    pub(crate) fn sibling(&self, device: &str) -> Self {
        Self::of_user(self.uri.user(), self.user_key.clone(), self.user_certificate.clone(), device)
    }

    pub(crate) fn domain(&self) -> &Domain {
        self.uri.domain()
    }

    /// As it goes into leaves.
    pub(crate) fn identity(&self) -> Identity {
        Identity::new(&self.seed, &self.chain)
    }

    /// The chain as requests carry it.
    pub(crate) fn certificates(&self) -> List<Opaque> {
        self.chain.iter().map(|der| Opaque::from(der.as_slice())).collect()
    }

    /// The user's certificate as requests carry it.
    pub(crate) fn user_certificates(&self) -> List<Opaque> {
        vec![Opaque::from(self.user_certificate.as_slice())].into()
    }

    /// The sender id of requests that the user key signs (S2).
    pub(crate) fn as_user(&self, root: &AsRoot) -> DsSenderId {
        let roots = AsRoots::new(root.domain().clone(), vec![root.certificate().to_vec()]).expect("roots");
        let identity = validate_client_chain(&self.chain, &roots, UnixMillis::now()).expect("a valid chain");
        DsSenderId::UserKeyHash(identity.user_key_hash.as_slice().into())
    }

    /// A queue config that no hub can tell from a good one; for the QS of another domain than the hub's.
    pub(crate) fn opaque_queue(&self) -> ClientQueueConfig {
        ClientQueueConfig { qs_domain: self.domain().as_bytes().into(), client_queue_information: self.uri.to_bytes().into() }
    }

    /// A fresh KeyPackage.
    pub(crate) fn key_package(&self, queue: Option<&ClientQueueConfig>) -> KeyPackage {
        self.key_package_with(queue, Capabilities::default())
    }

    pub(crate) fn key_package_with(&self, queue: Option<&ClientQueueConfig>, capabilities: Capabilities) -> KeyPackage {
        self.key_package_of(queue, capabilities, UnixMillis::now(), &[])
    }

    /// A KeyPackage made at `now`, with further extensions.
    pub(crate) fn key_package_of(
        &self,
        queue: Option<&ClientQueueConfig>,
        capabilities: Capabilities,
        now: UnixMillis,
        further: &[Extension],
    ) -> KeyPackage {
        let queue = queue.map(|config| Extension { kind: QUEUE_CONFIG_EXTENSION, data: encode(config) });
        let extensions: Vec<Extension> = queue.into_iter().chain(further.iter().cloned()).collect();
        let mut rng = ChaCha20Rng::from_rng(&mut rand::rng());
        KeyPackage::new(self.identity(), capabilities, &extensions, now.seconds(), &mut rng)
    }

    /// A KeyPackage that is valid from now on for so long.
    pub(crate) fn key_package_living(&self, lifetime: Duration) -> KeyPackage {
        let now = UnixMillis::now();
        let lifetime = (now.seconds() - 60, now.plus(lifetime).seconds());
        KeyPackage::living(self.identity(), Capabilities::default(), &[], lifetime, &mut ChaCha20Rng::from_rng(&mut rand::rng()))
    }

    /// A request about KeyPackages, to the node of `destination`.
    pub(crate) fn keys_request(&self, destination: &Domain, request: KeysRequest) -> ClientRequest {
        let message = KeysMessage { certificates: self.certificates(), request };
        content(destination, Service::Keys(message)).sign(&self.key)
    }

    /// A request about the account, by the user key.
    pub(crate) fn accounts_request(&self, request: AccountsRequest) -> ClientRequest {
        let message = AccountsMessage { certificates: self.user_certificates(), request };
        content(self.domain(), Service::Accounts(message)).sign(&self.user_key)
    }
}

/// The content of a request made now.
pub(crate) fn content(destination: &Domain, service: Service) -> Content {
    Content::new(destination, RequestId::random(), UnixMillis::now(), service)
}

/// The `external_senders` extension with a hub's DS.
pub(crate) fn external_senders(external_sender: &[u8]) -> Extension {
    Extension { kind: EXTENSION_EXTERNAL_SENDERS, data: encode(&Opaque::from(external_sender)) }
}

/// A forged group: what its hub should have, and who is at which leaf.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) uri: GroupUri,
    pub(crate) group: SynthGroup,
    pub(crate) devices: BTreeMap<u32, Device>,
}

impl Room {
    /// A group of `hub` that `creator` forges, and the request that creates it. `external_sender`: the hub's.
    pub(crate) fn forge(
        hub: &Domain,
        external_sender: &[u8],
        creator: &Device,
        queue: ClientQueueConfig,
    ) -> (Self, ClientRequest) {
        let uri = GroupUri::new(hub, &rand::rng().random());
        let package = creator.key_package(None);
        let mut group = SynthGroup::create(&uri.to_bytes(), &package, &[external_senders(external_sender)], rand::rng().random());
        let group_info = group.group_info_with_tree(0).expect("leaf 0 is there");
        let room = Self { uri, group, devices: BTreeMap::from([(0, creator.clone())]) };
        let request = room.creation(&package, queue, group_info);
        (room, request)
    }

    /// A create_group of these parts by the device at leaf 0.
    pub(crate) fn creation(&self, package: &KeyPackage, queue: ClientQueueConfig, group_info: Vec<u8>) -> ClientRequest {
        let body = CreateGroup {
            group_id: self.id(),
            key_package: package.message().into(),
            client_queue_config: queue,
            group_info: group_info.into(),
        };
        let sender = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
        self.request_by(sender, &self.devices[&0].key, DsRequest::CreateGroup(body))
    }

    /// The group id as requests carry it.
    pub(crate) fn id(&self) -> Opaque {
        self.uri.to_bytes().into()
    }

    /// A request by whoever is at `leaf`.
    pub(crate) fn request(&self, leaf: u32, body: DsRequest) -> ClientRequest {
        self.request_by(DsSenderId::LeafIndex(leaf), &self.devices[&leaf].key, body)
    }

    /// A request by any sender.
    pub(crate) fn request_by(&self, sender_id: DsSenderId, key: &SigningKey, body: DsRequest) -> ClientRequest {
        self.request_with(sender_id, List::default(), key, body)
    }

    /// A request by a user of this hub or another, with its certificate.
    pub(crate) fn request_by_user(&self, device: &Device, root: &AsRoot, body: DsRequest) -> ClientRequest {
        self.request_with(device.as_user(root), device.user_certificates(), &device.user_key, body)
    }

    fn request_with(
        &self,
        sender_id: DsSenderId,
        certificates: List<Opaque>,
        key: &SigningKey,
        request: DsRequest,
    ) -> ClientRequest {
        content(self.uri.hub(), Service::Ds(DsMessage { sender_id, certificates, request })).sign(key)
    }

    /// Forges a Commit without entering its epoch: for one that is to be refused, or may be.
    pub(crate) fn try_commit(&self, committer: u32, change: Change) -> Forged {
        self.group.clone().commit(committer, change).expect("a Commit that can be made")
    }

    /// The body of requests that carry a Commit and nothing else.
    pub(crate) fn commit_body(&self, forged: &Forged) -> GroupCommit {
        GroupCommit { group_id: self.id(), group_update: update_of(forged) }
    }

    /// The body of requests that carry a Commit and Welcomes.
    pub(crate) fn add_body(&self, forged: &Forged) -> GroupAdd {
        let welcomes = if forged.welcome.is_empty() { vec![] } else { vec![Opaque::from(forged.welcome.as_slice())] };
        GroupAdd { group_id: self.id(), group_update: update_of(forged), welcomes: welcomes.into() }
    }

    /// The body of requests that carry an external Commit.
    pub(crate) fn join_body(&self, forged: &Forged, client_queue_config: ClientQueueConfig) -> GroupJoin {
        GroupJoin { group_id: self.id(), group_update: update_of(forged), client_queue_config }
    }

    /// A message as send_message.
    pub(crate) fn message_body(&self, message: Vec<u8>) -> DsRequest {
        DsRequest::SendMessage(SendMessage { group_id: self.id(), message: message.into() })
    }

    /// An update_client by `leaf`, and the Commit in it.
    pub(crate) fn update(&self, leaf: u32) -> (Forged, ClientRequest) {
        let forged = self.try_commit(leaf, Change::default());
        let request = self.request(leaf, DsRequest::UpdateClient(self.commit_body(&forged)));
        (forged, request)
    }
}

/// Commit and GroupInfo as requests carry them.
pub(crate) fn update_of(forged: &Forged) -> GroupUpdate {
    GroupUpdate { commit: forged.commit.as_slice().into(), group_info: forged.group_info.as_slice().into() }
}

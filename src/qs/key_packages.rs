//! Which KeyPackages a client may publish (R7, X3).

use std::collections::BTreeMap;

use crate::base::ids::{InviteId, QueueId};
use crate::base::limits::{KEY_PACKAGE_REMAINING_MIN, Limits};
use crate::base::rule::{answer, on};
use crate::base::{ClientUri, Domain, UnixMillis};
use crate::identity::chain::{AsRoots, ClientIdentity, validate_client_chain};
use crate::mls::key_package::validate_key_package;
use crate::qs::sealed::invite_is_good;
use crate::wire::keys::PublishKeyPackages;
use crate::wire::qs::{QueueBinding, QueueInformation};
use crate::wire::{ErrorCode, Opaque, Rejection};

/// A KeyPackage that may be stored and handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedKeyPackage {
    /// KeyPackageRef.
    pub reference: Vec<u8>,
    /// The MLSMessage as the client sent it.
    pub message: Vec<u8>,
    /// Handed out when no other is left, and kept.
    pub last_resort: bool,
    /// From then on it is not handed out.
    pub not_after: UnixMillis,
    /// The invite that is its queue information (X3).
    pub invite: PublishedInvite,
}

/// The invite in a KeyPackage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedInvite {
    /// The queue that it leads to.
    pub queue_id: QueueId,
    /// The queue's generation when it was sealed.
    pub generation: u32,
    /// Its name.
    pub invite_id: InviteId,
    /// Until when it is good.
    pub expires_at: UnixMillis,
}

/// Whom and what a publication is checked against.
pub struct Publication<'a> {
    /// Who publishes.
    pub publisher: &'a ClientIdentity,
    /// This domain.
    pub domain: &'a Domain,
    /// Its AS roots.
    pub roots: &'a AsRoots,
    /// The node's limits.
    pub limits: &'a Limits,
    /// The time now.
    pub now: UnixMillis,
    /// Opens a sealed queue information, as [`super::sealed::open`] does.
    pub open: &'a (dyn Fn(&[u8]) -> Option<QueueInformation> + Sync),
}

impl Publication<'_> {
    /// Validates what a client publishes. Whose the queues are is asked afterwards, see [`check_queues`].
    pub fn decide(&self, body: &PublishKeyPackages) -> Result<Vec<PublishedKeyPackage>, Rejection> {
        if !has_room_for(body.key_packages.len() as u64, 0, self.limits.key_packages_per_client_max as u64) {
            return Err(ErrorCode::TooLarge.into());
        }
        let ordinary = body.key_packages.iter().map(|message| (message, false));
        let last_resort = body.last_resort.iter().map(|message| (message, true));
        ordinary.chain(last_resort).map(|(message, last_resort)| self.check(message, last_resort)).collect()
    }

    fn check(&self, message: &Opaque, last_resort: bool) -> Result<PublishedKeyPackage, Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidKeyPackage);
        // QS-011 (R7): each is valid.
        let key_package = validate_key_package(message).map_err(|rejection| match rejection.code {
            ErrorCode::InvalidKeyPackage => answer("QS-011", refused(), ErrorCode::Internal.into()),
            _ => rejection,
        })?;
        // QS-012 (R8): each is the publisher's own.
        let identity = validate_client_chain(&key_package.claim.chain, self.roots, self.now)
            .map_err(|_| Rejection::from(answer("QS-012", ErrorCode::InvalidCredential, ErrorCode::Internal)))?;
        let key = &key_package.claim.signature_key;
        let is_own = identity.client == self.publisher.client && identity.public_key == *key && self.publisher.public_key == *key;
        if on("QS-012") && !is_own {
            return Err(ErrorCode::InvalidCredential.into());
        }
        // QS-013: each is marked as what it is published as, last resort or not.
        if on("QS-013") && key_package.last_resort != last_resort {
            return Err(refused());
        }
        // QS-015 (S15): each says where its client's messages go, and that is here.
        let elsewhere = || Rejection::from(answer("QS-015", ErrorCode::InvalidQueueConfig, ErrorCode::Internal));
        let config = key_package.queue_config.ok_or_else(elsewhere)?;
        if config.qs_domain[..] != *self.domain.as_bytes() {
            return Err(elsewhere());
        }
        // QS-017 (X3): its queue information is an invite, which is as often good as the KeyPackage is.
        let invite = (self.open)(&config.client_queue_information)
            .and_then(|information| self.invite(&information, last_resort))
            .ok_or_else(|| Rejection::from(answer("QS-017", ErrorCode::InvalidQueueConfig, ErrorCode::Internal)))?;
        // QS-014 (R7): each has enough of its lifetime left.
        let not_after = key_package.not_after.min(identity.not_after).min(invite.expires_at);
        if on("QS-014") && not_after <= self.now.plus(KEY_PACKAGE_REMAINING_MIN) {
            return Err(refused());
        }
        Ok(PublishedKeyPackage { reference: key_package.reference, message: message.to_vec(), last_resort, not_after, invite })
    }

    fn invite(&self, information: &QueueInformation, last_resort: bool) -> Option<PublishedInvite> {
        let QueueBinding::Invite(invite) = &information.binding else { return None };
        let is_good = invite_is_good(invite, self.now) && invite.last_resort == u8::from(last_resort);
        is_good.then_some(PublishedInvite {
            queue_id: information.queue_id,
            generation: information.generation,
            invite_id: invite.invite_id,
            expires_at: UnixMillis(invite.expires_at_ms),
        })
    }
}

/// Whether the publisher's queues are those that its KeyPackages lead to. `clients`: whose these queues are, of those that are
/// there.
pub fn check_queues(
    published: &[PublishedKeyPackage],
    publisher: &ClientUri,
    clients: &BTreeMap<QueueId, ClientUri>,
) -> Result<(), Rejection> {
    // QS-018 (X3): the invite is to a queue of the publisher.
    let is_own = |one: &PublishedKeyPackage| clients.get(&one.invite.queue_id) == Some(publisher);
    if on("QS-018") && !published.iter().all(is_own) { Err(ErrorCode::InvalidQueueConfig.into()) } else { Ok(()) }
}

/// QS-010: a client has at most so many KeyPackages, the one of last resort not counted. `there`: those that it has.
pub fn has_room_for(more: u64, there: u64, limit: u64) -> bool {
    !on("QS-010") || there.saturating_add(more) <= limit
}

/// QS-016 (R7): none was published before, whatever became of it.
pub fn is_new(published_before: bool) -> bool {
    !on("QS-016") || !published_before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::AsRoot;
    use crate::mls::testing::TestClient;
    use crate::wire::ds::ClientQueueConfig;
    use crate::wire::qs::Invite;

    struct World {
        root: AsRoot,
        roots: AsRoots,
        domain: Domain,
    }

    fn world() -> World {
        let domain: Domain = "b.test".parse().expect("a domain");
        let root = AsRoot::create(&domain, UnixMillis::now()).expect("a root");
        let roots = AsRoots::new(domain.clone(), vec![root.certificate().to_vec()]).expect("roots");
        World { root, roots, domain }
    }

    impl World {
        fn publish(&self, by: &TestClient, body: &PublishKeyPackages) -> Result<Vec<PublishedKeyPackage>, ErrorCode> {
            self.publish_at(by, body, UnixMillis::now())
        }

        fn publish_at(
            &self,
            by: &TestClient,
            body: &PublishKeyPackages,
            now: UnixMillis,
        ) -> Result<Vec<PublishedKeyPackage>, ErrorCode> {
            let publisher = validate_client_chain(&by.chain, &self.roots, now).expect("a valid chain");
            let publication = Publication {
                publisher: &publisher,
                domain: &self.domain,
                roots: &self.roots,
                limits: &Limits::default(),
                now,
                open: &|octets| crate::wire::decode(octets).ok(),
            };
            publication.decide(body).map_err(|rejection| rejection.code)
        }
    }

    /// A queue config that opens by decoding it: to an invite, as often good as it says.
    fn config(by: &TestClient, last_resort: u8, living: std::time::Duration) -> ClientQueueConfig {
        let invite = Invite { invite_id: InviteId([2; 16]), last_resort, expires_at_ms: UnixMillis::now().plus(living).0 };
        with_binding(by, QueueBinding::Invite(invite))
    }

    fn with_binding(by: &TestClient, binding: QueueBinding) -> ClientQueueConfig {
        let information = QueueInformation { queue_id: QueueId([1; 16]), generation: 1, binding };
        ClientQueueConfig { client_queue_information: crate::wire::encode(&information).into(), ..by.queue() }
    }

    const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

    fn ordinary(messages: Vec<Vec<u8>>) -> PublishKeyPackages {
        PublishKeyPackages { key_packages: messages.into_iter().map(Opaque::from).collect(), last_resort: None }
    }

    // covers DS-027, DS-029, QS-010, QS-011, QS-012, QS-013, QS-014, QS-015, QS-017
    #[test]
    fn a_client_publishes_its_own_valid_key_packages_and_nothing_else() {
        let world = world();
        let bob = TestClient::new(&world.root, "bob");
        let once = config(&bob, 0, 84 * DAY);
        let good = bob.key_package_message(Some(&once), false);
        let last_resort = bob.key_package_message(Some(&config(&bob, 1, 84 * DAY)), true);
        let both = PublishKeyPackages { last_resort: Some(last_resort.clone().into()), ..ordinary(vec![good.clone()]) };
        let published = world.publish(&bob, &both).expect("accepted");
        assert_eq!(published.iter().map(|one| one.last_resort).collect::<Vec<_>>(), [false, true]);
        assert_eq!(published[0].message, good, "kept byte for byte (R9)");
        assert_eq!((published[0].invite.queue_id, published[0].invite.invite_id), (QueueId([1; 16]), InviteId([2; 16])));

        let refused = |body: &PublishKeyPackages| world.publish(&bob, body).expect_err("refused");
        let many = ordinary(vec![Vec::new(); Limits::default().key_packages_per_client_max + 1]);
        assert_eq!(refused(&many), ErrorCode::TooLarge);
        let mut damaged = good.clone();
        *damaged.last_mut().expect("octets") ^= 1;
        assert_eq!(refused(&ordinary(vec![damaged])), ErrorCode::InvalidKeyPackage);
        assert_eq!(refused(&ordinary(vec![bob.key_package_message(Some(&once), true)])), ErrorCode::InvalidKeyPackage, "marked");
        let unmarked = bob.key_package_message(Some(&config(&bob, 1, 84 * DAY)), false);
        let unmarked = PublishKeyPackages { last_resort: Some(unmarked.into()), ..ordinary(Vec::new()) };
        assert_eq!(refused(&unmarked), ErrorCode::InvalidKeyPackage);
        let elsewhere = ClientQueueConfig { qs_domain: b"c.test".as_slice().into(), ..once.clone() };
        let past = Invite { invite_id: InviteId([2; 16]), last_resort: 0, expires_at_ms: UnixMillis::now().0 - 1 };
        let expired = with_binding(&bob, QueueBinding::Invite(past));
        let for_hub = with_binding(&bob, QueueBinding::Hub(b"c.test".as_slice().into()));
        for (what, queue) in [
            ("no queue", None),
            ("a queue elsewhere", Some(elsewhere)),
            ("what does not open", Some(bob.queue())),
            ("bound to a hub", Some(for_hub)),
            ("an invite that is good for many", Some(config(&bob, 1, 84 * DAY))),
            ("an invite that has expired", Some(expired)),
            ("an invite that outlives any KeyPackage", Some(config(&bob, 0, 200 * DAY))),
        ] {
            let body = ordinary(vec![bob.key_package_message(queue.as_ref(), false)]);
            assert_eq!(refused(&body), ErrorCode::InvalidQueueConfig, "{what}");
        }

        let immortal = ordinary(vec![bob.key_package_living(400 * DAY)]);
        assert_eq!(refused(&immortal), ErrorCode::InvalidKeyPackage, "for longer than a KeyPackage may live");
        let large = vec![0; crate::base::limits::KEY_PACKAGE_BYTES_MAX + 1];
        assert_eq!(refused(&ordinary(vec![large])), ErrorCode::TooLarge);

        let carol = TestClient::new(&world.root, "carol");
        let anothers = ordinary(vec![carol.key_package_message(Some(&config(&carol, 0, 84 * DAY)), false)]);
        assert_eq!(refused(&anothers), ErrorCode::InvalidCredential);
        // The same name with another key: the chain that the connection proved is what counts.
        let twin = TestClient::new(&world.root, "bob");
        let twins = ordinary(vec![twin.key_package_message(Some(&config(&twin, 0, 84 * DAY)), false)]);
        assert_eq!(refused(&twins), ErrorCode::InvalidCredential);
        let late = UnixMillis::now().plus(84 * DAY);
        let dying = ordinary(vec![bob.key_package_message(Some(&config(&bob, 0, 90 * DAY)), false)]);
        assert_eq!(world.publish_at(&bob, &dying, late), Err(ErrorCode::InvalidKeyPackage), "nearly at its end (R7)");
        let soon = ordinary(vec![bob.key_package_message(Some(&config(&bob, 0, KEY_PACKAGE_REMAINING_MIN / 2)), false)]);
        assert_eq!(refused(&soon), ErrorCode::InvalidKeyPackage, "its invite is");
    }

    // covers QS-010, QS-016, QS-018
    #[test]
    fn key_packages_are_new_not_too_many_and_lead_to_ones_own_queue() {
        assert!(has_room_for(2, 3, 5) && !has_room_for(3, 3, 5) && !has_room_for(u64::MAX, 1, 5));
        assert!(is_new(false) && !is_new(true));
        let client = |name: &str| format!("mimi://b.test/d/{name}/phone").parse::<ClientUri>().expect("a client");
        let leading_to = |queue: u8| PublishedKeyPackage {
            reference: vec![1],
            message: Vec::new(),
            last_resort: false,
            not_after: UnixMillis(1),
            invite: PublishedInvite {
                queue_id: QueueId([queue; 16]),
                generation: 1,
                invite_id: InviteId([2; 16]),
                expires_at: UnixMillis(1),
            },
        };
        let clients = BTreeMap::from([(QueueId([1; 16]), client("bob")), (QueueId([2; 16]), client("ben"))]);
        let check = |queues: &[u8]| {
            let published: Vec<_> = queues.iter().map(|queue| leading_to(*queue)).collect();
            check_queues(&published, &client("bob"), &clients).map_err(|rejection| rejection.code)
        };
        assert_eq!(check(&[1, 1]), Ok(()));
        assert_eq!(check(&[1, 2]), Err(ErrorCode::InvalidQueueConfig), "another's");
        assert_eq!(check(&[3]), Err(ErrorCode::InvalidQueueConfig), "none");
    }
}

//! Which KeyPackages a client may publish (R7).

use crate::base::limits::{KEY_PACKAGE_REMAINING_MIN, Limits};
use crate::base::{Domain, UnixMillis};
use crate::identity::chain::{AsRoots, ClientIdentity, validate_client_chain};
use crate::mls::key_package::validate_key_package;
use crate::wire::keys::PublishKeyPackages;
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
}

/// Validates what a client publishes. `roots`: this domain's own.
pub fn decide_publish(
    publisher: &ClientIdentity,
    body: &PublishKeyPackages,
    domain: &Domain,
    roots: &AsRoots,
    limits: &Limits,
    now: UnixMillis,
) -> Result<Vec<PublishedKeyPackage>, Rejection> {
    // QS-010: at most so many per client.
    if body.key_packages.len() > limits.key_packages_per_client_max {
        return Err(ErrorCode::TooLarge.into());
    }
    let ordinary = body.key_packages.iter().map(|message| (message, false));
    let last_resort = body.last_resort.iter().map(|message| (message, true));
    ordinary.chain(last_resort).map(|(message, last_resort)| check(publisher, message, last_resort, domain, roots, now)).collect()
}

fn check(
    publisher: &ClientIdentity,
    message: &Opaque,
    last_resort: bool,
    domain: &Domain,
    roots: &AsRoots,
    now: UnixMillis,
) -> Result<PublishedKeyPackage, Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidKeyPackage);
    // QS-011 (R7): valid as a KeyPackage.
    let key_package = validate_key_package(message)?;
    // QS-012 (R8): the publisher's own.
    let identity =
        validate_client_chain(&key_package.claim.chain, roots, now).map_err(|_| Rejection::from(ErrorCode::InvalidCredential))?;
    let key = &key_package.claim.signature_key;
    if identity.client != publisher.client || identity.public_key != *key || publisher.public_key != *key {
        return Err(ErrorCode::InvalidCredential.into());
    }
    // QS-013: marked as what it is published as.
    // QS-014 (R7): with enough of its lifetime left.
    let not_after = key_package.not_after.min(identity.not_after);
    if key_package.last_resort != last_resort || not_after <= now.plus(KEY_PACKAGE_REMAINING_MIN) {
        return Err(refused());
    }
    // QS-015 (S15): it says where its client's messages go, and that is here.
    let config = key_package.queue_config.ok_or(ErrorCode::InvalidQueueConfig)?;
    if config.qs_domain[..] != *domain.as_bytes() {
        return Err(ErrorCode::InvalidQueueConfig.into());
    }
    Ok(PublishedKeyPackage { reference: key_package.reference, message: message.to_vec(), last_resort, not_after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::AsRoot;
    use crate::mls::testing::TestClient;

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
            let now = UnixMillis::now();
            let publisher = validate_client_chain(&by.chain, &self.roots, now).expect("a valid chain");
            decide_publish(&publisher, body, &self.domain, &self.roots, &Limits::default(), now)
                .map_err(|rejection| rejection.code)
        }
    }

    fn ordinary(messages: Vec<Vec<u8>>) -> PublishKeyPackages {
        PublishKeyPackages { key_packages: messages.into_iter().map(Opaque::from).collect(), last_resort: None }
    }

    // covers DS-027, DS-029, QS-010, QS-011, QS-012, QS-013, QS-014, QS-015
    #[test]
    fn a_client_publishes_its_own_valid_key_packages_and_nothing_else() {
        let world = world();
        let bob = TestClient::new(&world.root, "bob");
        let good = bob.key_package_message(Some(&bob.queue()), false);
        let last_resort = bob.key_package_message(Some(&bob.queue()), true);
        let both = PublishKeyPackages { last_resort: Some(last_resort.clone().into()), ..ordinary(vec![good.clone()]) };
        let published = world.publish(&bob, &both).expect("accepted");
        assert_eq!(published.iter().map(|one| one.last_resort).collect::<Vec<_>>(), [false, true]);
        assert_eq!(published[0].message, good, "kept byte for byte (R9)");

        let refused = |body: &PublishKeyPackages| world.publish(&bob, body).expect_err("refused");
        let many = ordinary(vec![Vec::new(); Limits::default().key_packages_per_client_max + 1]);
        assert_eq!(refused(&many), ErrorCode::TooLarge);
        let mut damaged = good.clone();
        *damaged.last_mut().expect("octets") ^= 1;
        assert_eq!(refused(&ordinary(vec![damaged])), ErrorCode::InvalidKeyPackage);
        assert_eq!(refused(&ordinary(vec![last_resort])), ErrorCode::InvalidKeyPackage, "marked, but not published as that");
        let unmarked = PublishKeyPackages { last_resort: Some(good.into()), ..ordinary(Vec::new()) };
        assert_eq!(refused(&unmarked), ErrorCode::InvalidKeyPackage);
        let without_queue = ordinary(vec![bob.key_package_message(None, false)]);
        assert_eq!(refused(&without_queue), ErrorCode::InvalidQueueConfig);

        let immortal = ordinary(vec![bob.key_package_living(std::time::Duration::from_secs(400 * 24 * 60 * 60))]);
        assert_eq!(refused(&immortal), ErrorCode::InvalidKeyPackage, "for longer than a KeyPackage may live");
        let large = vec![0; crate::base::limits::KEY_PACKAGE_BYTES_MAX + 1];
        assert_eq!(refused(&ordinary(vec![large])), ErrorCode::TooLarge);

        let carol = TestClient::new(&world.root, "carol");
        let anothers = ordinary(vec![carol.key_package_message(Some(&carol.queue()), false)]);
        assert_eq!(refused(&anothers), ErrorCode::InvalidCredential);
        // The same name with another key: the chain that the connection proved is what counts.
        let twin = TestClient::new(&world.root, "bob");
        let twins = ordinary(vec![twin.key_package_message(Some(&twin.queue()), false)]);
        assert_eq!(refused(&twins), ErrorCode::InvalidCredential);
        let late = UnixMillis::now().plus(std::time::Duration::from_secs(84 * 24 * 60 * 60));
        let publisher = validate_client_chain(&bob.chain, &world.roots, late).expect("still valid");
        let dying = ordinary(vec![bob.key_package_message(Some(&bob.queue()), false)]);
        let refused =
            decide_publish(&publisher, &dying, &world.domain, &world.roots, &Limits::default(), late).expect_err("refused");
        assert_eq!(refused.code, ErrorCode::InvalidKeyPackage, "nearly at the end of its lifetime (R7)");
    }
}

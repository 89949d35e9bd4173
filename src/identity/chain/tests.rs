//! Every way in which a chain is refused, one by one, and by exact variant. What counts as failure: a refused chain accepted, or
//! refused for another reason than its one defect.

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, SanType};

use super::super::issue::{AsRoot, issue_client, user_csr};
use super::super::x509::{self, PublicKey, Signer};
use super::*;
use crate::base::crypto::SigningKey;

const NOW: UnixMillis = UnixMillis(1_900_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A domain's root, a user and its client, all as the real code makes them.
struct World {
    root: AsRoot,
    roots: AsRoots,
    user: UserUri,
    user_key: SigningKey,
    user_certificate: Vec<u8>,
    client: ClientUri,
    client_key: SigningKey,
    client_certificate: Vec<u8>,
}

impl World {
    fn new(domain: &str, user: &str) -> Self {
        Self::of_root(AsRoot::create(&domain.parse().expect("a domain"), NOW).expect("a root"), user)
    }

    fn of_root(root: AsRoot, user: &str) -> Self {
        let user = UserUri::new(root.domain(), user).expect("a user");
        let user_key = SigningKey::generate().expect("a key");
        let csr = user_csr(&user_key, &user).expect("a request");
        let user_certificate = root.issue_user(&csr, &user, NOW).expect("a user certificate");
        let client = user.client("phone").expect("a client");
        let client_key = SigningKey::generate().expect("a key");
        let client_certificate =
            issue_client(&user_key, &user_certificate, &client, client_key.public(), NOW).expect("a client certificate");
        let roots = AsRoots::new(root.domain().clone(), vec![root.certificate().to_vec()]).expect("roots");
        Self { root, roots, user, user_key, user_certificate, client, client_key, client_certificate }
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.client_certificate.clone(), self.user_certificate.clone()]
    }

    fn validate(&self, chain: &[Vec<u8>]) -> Result<ClientIdentity, ChainError> {
        validate_client_chain(chain, &self.roots, NOW)
    }

    /// A client certificate by the user, with one thing changed.
    fn client_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut parameters = valid_parameters(&self.client.to_string());
        change(&mut parameters);
        let key = PublicKey(self.client_key.public().try_into().expect("32 octets"));
        x509::sign(&parameters, &key, &self.user_certificate, Signer(&self.user_key)).expect("a certificate")
    }

    /// A user certificate by the root, with one thing changed.
    fn user_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut parameters = valid_parameters(&self.user.to_string());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        change(&mut parameters);
        let key = PublicKey(self.user_key.public().try_into().expect("32 octets"));
        x509::sign(&parameters, &key, self.root.certificate(), Signer(self.root.key())).expect("a certificate")
    }

    /// What each validator says of a user certificate with one thing changed, under which the user then issued the client anew.
    fn with_user(&self, change: impl FnOnce(&mut CertificateParams)) -> (ChainError, ChainError) {
        let user_certificate = self.user_with(change);
        let mut parameters = valid_parameters(&self.client.to_string());
        parameters.is_ca = IsCa::ExplicitNoCa;
        let key = PublicKey(self.client_key.public().try_into().expect("32 octets"));
        let leaf = x509::sign(&parameters, &key, &user_certificate, Signer(&self.user_key)).expect("a certificate");
        (
            self.validate(&[leaf, user_certificate.clone()]).expect_err("a refusal"),
            validate_user_chain(&[user_certificate], &self.roots, NOW).expect_err("a refusal"),
        )
    }
}

fn valid_parameters(uri: &str) -> CertificateParams {
    let mut parameters = x509::parameters(uri, NOW.minus(DAY), NOW.plus(DAY)).expect("parameters");
    parameters.subject_alt_names = vec![uri_name(uri)];
    parameters
}

fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("ASCII"))
}

fn both(error: ChainError) -> (ChainError, ChainError) {
    (error.clone(), error)
}

#[test]
fn a_good_chain_gives_the_identity() {
    let world = World::new("a.test", "alice");
    let identity = world.validate(&world.chain()).expect("a valid chain");
    let user_spki = x509::parse(&world.user_certificate).expect("a certificate").public_key().raw.to_vec();
    let expected = ClientIdentity {
        client: world.client.clone(),
        user: world.user.clone(),
        public_key: world.client_key.public().to_vec(),
        user_public_key: world.user_key.public().to_vec(),
        user_key_hash: sha256(&user_spki),
        not_after: NOW.plus(limits::USER_CERTIFICATE_LIFETIME),
    };
    assert_eq!(identity, expected);
    assert_eq!(crate::identity::revoked::key_hash(world.user_key.public()), sha256(&user_spki));
    let user = validate_user_chain(&world.chain()[1..], &world.roots, NOW).expect("a valid chain");
    let expected = UserIdentity {
        user: expected.user,
        public_key: expected.user_public_key,
        user_key_hash: expected.user_key_hash,
        not_after: expected.not_after,
    };
    assert_eq!(user, expected);
}

#[test]
fn the_end_of_validity_is_the_earliest_in_the_chain() {
    let world = World::new("a.test", "alice");
    let leaf = world.client_with(|parameters| parameters.not_after = x509::date(NOW.plus(DAY / 2)).expect("a date"));
    let identity = world.validate(&[leaf, world.user_certificate.clone()]).expect("a valid chain");
    assert_eq!(identity.not_after, NOW.plus(DAY / 2));

    // Ten years on, the root is what ends first.
    let late = NOW.plus(limits::ROOT_LIFETIME).minus(DAY);
    let csr = user_csr(&world.user_key, &world.user).expect("a request");
    let user_certificate = world.root.issue_user(&csr, &world.user, late).expect("a certificate");
    let user = validate_user_chain(&[user_certificate], &world.roots, late).expect("a valid chain");
    assert_eq!(user.not_after, NOW.plus(limits::ROOT_LIFETIME));
}

#[test]
fn refuses_a_chain_of_another_length() {
    let world = World::new("a.test", "alice");
    let [client, user] = [world.client_certificate.clone(), world.user_certificate.clone()];
    let root = world.root.certificate().to_vec();
    for chain in [vec![], vec![client.clone()], vec![client.clone(), user.clone(), root.clone()]] {
        assert_eq!(world.validate(&chain), Err(ChainError::Length { found: chain.len(), wanted: 2 }));
    }
    for chain in [vec![], vec![user.clone(), root], vec![client, user]] {
        let refused = validate_user_chain(&chain, &world.roots, NOW);
        assert_eq!(refused, Err(ChainError::Length { found: chain.len(), wanted: 1 }));
    }
}

#[test]
fn refuses_garbage_oversize_and_the_same_certificate_twice() {
    let world = World::new("a.test", "alice");
    let [client, user] = [world.client_certificate.clone(), world.user_certificate.clone()];
    let mut trailing = user.clone();
    trailing.push(0);
    for bad in [vec![], b"garbage".to_vec(), user[..user.len() - 1].to_vec(), trailing] {
        assert_eq!(world.validate(&[client.clone(), bad.clone()]), Err(ChainError::Garbage));
        assert_eq!(world.validate(&[bad.clone(), user.clone()]), Err(ChainError::Garbage));
        assert_eq!(validate_user_chain(std::slice::from_ref(&bad), &world.roots, NOW), Err(ChainError::Garbage));
        assert_eq!(AsRoots::new(world.root.domain().clone(), vec![bad]).err(), Some(ChainError::Garbage));
    }
    let size = limits::CERTIFICATE_BYTES_MAX + 1;
    let large = vec![0; size];
    assert_eq!(world.validate(&[large.clone(), user.clone()]), Err(ChainError::TooLarge(size)));
    assert_eq!(world.validate(&[client, large.clone()]), Err(ChainError::TooLarge(size)));
    assert_eq!(validate_user_chain(std::slice::from_ref(&large), &world.roots, NOW), Err(ChainError::TooLarge(size)));
    assert_eq!(claimed_client(&[large]), Err(ChainError::TooLarge(size)));
    assert_eq!(world.validate(&[user.clone(), user]), Err(ChainError::Duplicate));
}

#[test]
fn a_certificate_of_the_largest_size_is_still_read() {
    let world = World::new("a.test", "alice");
    let size = |padding: usize| {
        let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![0; padding]);
        world.client_with(|parameters| parameters.custom_extensions = vec![extension])
    };
    let padding = limits::CERTIFICATE_BYTES_MAX - (size(7000).len() - 7000);
    let leaf = size(padding);
    assert_eq!(leaf.len(), limits::CERTIFICATE_BYTES_MAX);
    assert!(world.validate(&[leaf, world.user_certificate.clone()]).is_ok());
    let leaf = size(padding + 1);
    let refused = world.validate(&[leaf, world.user_certificate.clone()]);
    assert_eq!(refused, Err(ChainError::TooLarge(limits::CERTIFICATE_BYTES_MAX + 1)));
}

#[test]
fn refuses_a_foreign_root() {
    let world = World::new("a.test", "alice");
    // Of the same name, so that only the signature tells them apart.
    let impostor = World::new("a.test", "alice");
    assert_eq!(world.validate(&impostor.chain()), Err(ChainError::BadSignature));
    assert_eq!(validate_user_chain(&impostor.chain()[1..], &world.roots, NOW), Err(ChainError::BadSignature));

    // Of another name: a root that pretends to nothing, for a user of this domain.
    let mut parameters = x509::parameters("another root", NOW, NOW.plus(DAY)).expect("parameters");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = SigningKey::generate().expect("a key");
    let other = parameters.self_signed(&Signer(&key)).expect("a certificate").der().to_vec();
    let roots = AsRoots::new(world.root.domain().clone(), vec![other]).expect("roots");
    assert_eq!(validate_client_chain(&world.chain(), &roots, NOW), Err(ChainError::UnknownIssuer));
    assert_eq!(validate_user_chain(&world.chain()[1..], &roots, NOW), Err(ChainError::UnknownIssuer));
}

#[test]
fn several_roots_are_a_set_whatever_their_order() {
    let (old, new) = (World::new("a.test", "alice"), World::new("a.test", "alice"));
    let certificates = [&old, &new].map(|world| world.root.certificate().to_vec());
    for certificates in [certificates.to_vec(), certificates.iter().rev().cloned().collect()] {
        let roots = AsRoots::new(old.root.domain().clone(), certificates.clone()).expect("roots");
        assert!(roots.certificates().eq(certificates.iter().map(Vec::as_slice)));
        for world in [&old, &new] {
            assert!(validate_client_chain(&world.chain(), &roots, NOW).is_ok());
            assert!(validate_user_chain(&world.chain()[1..], &roots, NOW).is_ok());
        }
    }
}

#[test]
fn refuses_an_expired_certificate() {
    let world = World::new("a.test", "alice");
    let past = NOW.minus(Duration::from_secs(1));
    let expired = ChainError::Expired { not_after: past };
    let leaf = world.client_with(|parameters| parameters.not_after = x509::date(past).expect("a date"));
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(expired.clone()));
    assert_eq!(world.with_user(|parameters| parameters.not_after = x509::date(past).expect("a date")), both(expired));

    // The last second still counts.
    let leaf = world.client_with(|parameters| parameters.not_after = x509::date(NOW).expect("a date"));
    assert!(world.validate(&[leaf, world.user_certificate.clone()]).is_ok());
    let user = world.user_with(|parameters| parameters.not_after = x509::date(NOW).expect("a date"));
    assert!(validate_user_chain(std::slice::from_ref(&user), &world.roots, NOW.plus(Duration::from_millis(999))).is_ok());
    let refused = validate_user_chain(&[user], &world.roots, NOW.plus(Duration::from_secs(1)));
    assert_eq!(refused, Err(ChainError::Expired { not_after: NOW }));
}

#[test]
fn refuses_a_certificate_that_is_not_valid_yet() {
    let world = World::new("a.test", "alice");
    let future = NOW.plus(Duration::from_secs(1));
    let refused = ChainError::NotYetValid { not_before: future };
    let leaf = world.client_with(|parameters| parameters.not_before = x509::date(future).expect("a date"));
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(refused.clone()));
    assert_eq!(world.with_user(|parameters| parameters.not_before = x509::date(future).expect("a date")), both(refused));
}

#[test]
fn refuses_a_root_outside_its_validity() {
    let world = World::new("a.test", "alice");
    let reissue = |not_before: UnixMillis, not_after: UnixMillis| {
        // The same name and key, other times.
        let mut parameters = x509::parameters("MIMI AS root of a.test", not_before, not_after).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        parameters.self_signed(&Signer(world.root.key())).expect("a certificate").der().to_vec()
    };
    let validate = |certificates: Vec<Vec<u8>>| {
        let roots = AsRoots::new(world.root.domain().clone(), certificates).expect("roots");
        let user = validate_user_chain(&world.chain()[1..], &roots, NOW).map(|identity| identity.not_after);
        let client = validate_client_chain(&world.chain(), &roots, NOW).map(|identity| identity.not_after);
        assert_eq!(user, client);
        user
    };
    let (old, new) = (reissue(NOW.minus(DAY * 2), NOW.minus(DAY)), reissue(NOW.plus(DAY), NOW.plus(DAY * 2)));
    assert_eq!(validate(vec![old.clone()]), Err(ChainError::Expired { not_after: NOW.minus(DAY) }));
    assert_eq!(validate(vec![new.clone()]), Err(ChainError::NotYetValid { not_before: NOW.plus(DAY) }));
    // One valid certificate of the key is enough.
    let current = reissue(NOW.minus(DAY), NOW.plus(DAY));
    assert_eq!(validate(vec![old, current, new]), Ok(NOW.plus(DAY)));
}

#[test]
fn refuses_a_client_that_another_user_issued() {
    let alice = World::new("a.test", "alice");
    let bob = World::of_root(alice.root.clone(), "bob");
    let leaf = {
        let parameters = valid_parameters(&bob.client.to_string());
        let key = PublicKey(bob.client_key.public().try_into().expect("32 octets"));
        x509::sign(&parameters, &key, &alice.user_certificate, Signer(&alice.user_key)).expect("a certificate")
    };
    let wrong_user = ChainError::WrongUser { client_user: bob.user.clone(), user: alice.user.clone() };
    assert_eq!(alice.validate(&[leaf.clone(), alice.user_certificate.clone()]), Err(wrong_user));
    // Beside the certificate of the user it names, it does not verify.
    assert_eq!(alice.validate(&[leaf, bob.user_certificate.clone()]), Err(ChainError::UnknownIssuer));
    // Nor may the issuing tool make it.
    assert!(issue_client(&alice.user_key, &alice.user_certificate, &bob.client, bob.client_key.public(), NOW).is_err());
}

#[test]
fn refuses_a_name_of_another_domain() {
    let world = World::new("a.test", "alice");
    let foreign = UserUri::new(&"b.test".parse().expect("a domain"), "alice").expect("a user");
    let wrong_domain = ChainError::WrongDomain { found: "b.test".into(), wanted: world.root.domain().clone() };
    // A root vouches for nobody outside its domain, whatever it signs.
    let user_certificate = world.user_with(|parameters| parameters.subject_alt_names = vec![uri_name(&foreign.to_string())]);
    let leaf = {
        let parameters = valid_parameters(&foreign.client("phone").expect("a client").to_string());
        let key = PublicKey(world.client_key.public().try_into().expect("32 octets"));
        x509::sign(&parameters, &key, &user_certificate, Signer(&world.user_key)).expect("a certificate")
    };
    assert_eq!(world.validate(&[leaf, user_certificate.clone()]), Err(wrong_domain.clone()));
    assert_eq!(validate_user_chain(&[user_certificate], &world.roots, NOW), Err(wrong_domain));
}

#[test]
fn refuses_a_root_of_another_domain() {
    let world = World::new("b.test", "alice");
    let domain: Domain = "a.test".parse().expect("a domain");
    let refused = AsRoots::new(domain.clone(), vec![world.root.certificate().to_vec()]);
    assert_eq!(refused.err(), Some(ChainError::WrongDomain { found: "b.test".into(), wanted: domain }));
    assert_eq!(domain_of_root(world.root.certificate()), Ok("b.test".parse().expect("a domain")));
}

#[test]
fn refuses_roots_that_cannot_be_roots() {
    let world = World::new("a.test", "alice");
    let refused = |certificates: Vec<Vec<u8>>| AsRoots::new(world.root.domain().clone(), certificates).err();
    assert_eq!(refused(vec![]), Some(ChainError::NoRoots));
    assert_eq!(refused(vec![world.client_certificate.clone()]), Some(ChainError::NotACa));
    assert_eq!(refused(vec![world.user_certificate.clone()]), Some(ChainError::PathLength));

    let mut parameters = x509::parameters("root", NOW, NOW.plus(DAY)).expect("parameters");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a P-256 key");
    let ecdsa = parameters.self_signed(&key).expect("a certificate").der().to_vec();
    assert_eq!(refused(vec![ecdsa.clone()]), Some(ChainError::KeyType));
    assert_eq!(domain_of_root(&ecdsa), Err(ChainError::NoDomain));
    assert_eq!(domain_of_root(&world.client_certificate), Err(ChainError::NotACa));

    parameters.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("a.test".into())],
        excluded_subtrees: vec![],
    });
    let constrained = parameters.self_signed(&Signer(world.root.key())).expect("a certificate").der().to_vec();
    assert_eq!(refused(vec![constrained]), Some(ChainError::NameConstraints));

    parameters.name_constraints = None;
    parameters.key_usages = vec![KeyUsagePurpose::CrlSign];
    let no_signer = parameters.self_signed(&Signer(world.root.key())).expect("a certificate").der().to_vec();
    assert_eq!(refused(vec![no_signer]), Some(ChainError::NotACa));
}

#[test]
fn refuses_a_client_that_is_a_ca() {
    let world = World::new("a.test", "alice");
    let leaf = world.client_with(|parameters| parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(ChainError::LeafIsCa));
}

#[test]
fn refuses_a_user_certificate_that_may_not_issue_or_may_issue_too_far() {
    let world = World::new("a.test", "alice");
    assert_eq!(world.with_user(|parameters| parameters.is_ca = IsCa::ExplicitNoCa), both(ChainError::NotACa));
    assert_eq!(world.with_user(|parameters| parameters.is_ca = IsCa::NoCa), both(ChainError::NotACa));
    let no_signing = |parameters: &mut CertificateParams| parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    assert_eq!(world.with_user(no_signing), both(ChainError::NotACa));
    for constraints in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(1)] {
        let change = |parameters: &mut CertificateParams| parameters.is_ca = IsCa::Ca(constraints);
        assert_eq!(world.with_user(change), both(ChainError::PathLength));
    }
}

#[test]
fn refuses_a_client_issued_by_the_root_itself() {
    let world = World::new("a.test", "alice");
    let key = PublicKey(world.client_key.public().try_into().expect("32 octets"));
    let parameters = valid_parameters(&world.client.to_string());
    let leaf = x509::sign(&parameters, &key, world.root.certificate(), Signer(world.root.key())).expect("a certificate");
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(ChainError::NotIssuedByUser));
}

#[test]
fn refuses_none_two_or_other_names() {
    let world = World::new("a.test", "alice");
    let (client, user) = (world.client.to_string(), world.user.to_string());
    let dns = || SanType::DnsName("a.test".try_into().expect("ASCII"));
    let cases = [
        (vec![], ChainError::NoUri),
        (vec![dns()], ChainError::NoUri),
        (vec![uri_name(&client), uri_name(&client)], ChainError::SeveralUris),
        (vec![uri_name(&client), uri_name("https://a.test/")], ChainError::SeveralUris),
        (vec![uri_name(&user)], ChainError::WrongUriKind("client")),
        (vec![uri_name("mimi://A.test/d/alice/phone")], ChainError::WrongUriKind("client")),
    ];
    for (names, expected) in cases {
        let leaf = world.client_with(|parameters| parameters.subject_alt_names = names);
        assert_eq!(claimed_client(std::slice::from_ref(&leaf)), Err(expected.clone()));
        assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(expected));
    }
    let cases = [
        (vec![], ChainError::NoUri),
        (vec![dns()], ChainError::NoUri),
        (vec![uri_name(&user), uri_name(&user)], ChainError::SeveralUris),
        (vec![uri_name(&client)], ChainError::WrongUriKind("user")),
    ];
    for (names, expected) in cases {
        assert_eq!(world.with_user(|parameters| parameters.subject_alt_names = names), both(expected));
    }
    // A name of another kind beside the URI is nobody's harm.
    let leaf = world.client_with(|parameters| parameters.subject_alt_names.push(dns()));
    assert!(world.validate(&[leaf, world.user_certificate.clone()]).is_ok());
}

#[test]
fn refuses_keys_that_are_not_ed25519() {
    let world = World::new("a.test", "alice");
    let ecdsa = KeyPair::generate().expect("a P-256 key");
    let parameters = valid_parameters(&world.client.to_string());
    let leaf = x509::sign(&parameters, &ecdsa, &world.user_certificate, Signer(&world.user_key)).expect("a certificate");
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(ChainError::KeyType));

    let mut parameters = valid_parameters(&world.user.to_string());
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let user = x509::sign(&parameters, &ecdsa, world.root.certificate(), Signer(world.root.key())).expect("a certificate");
    assert_eq!(validate_user_chain(std::slice::from_ref(&user), &world.roots, NOW), Err(ChainError::KeyType));
    let parameters = valid_parameters(&world.client.to_string());
    let key = PublicKey(world.client_key.public().try_into().expect("32 octets"));
    let leaf = x509::sign(&parameters, &key, &user, &ecdsa).expect("a certificate");
    assert_eq!(world.validate(&[leaf, user]), Err(ChainError::KeyType));
}

#[test]
fn refuses_a_changed_signature_or_another_algorithm() {
    let world = World::new("a.test", "alice");
    for index in 0..2 {
        let mut chain = world.chain();
        *chain[index].last_mut().expect("octets") ^= 1;
        assert_eq!(world.validate(&chain), Err(ChainError::BadSignature));
    }
    let mut user = world.user_certificate.clone();
    *user.last_mut().expect("octets") ^= 1;
    assert_eq!(validate_user_chain(&[user], &world.roots, NOW), Err(ChainError::BadSignature));

    // Signed with ECDSA under the issuer's name.
    let ecdsa = KeyPair::generate().expect("a P-256 key");
    let key = || PublicKey(world.client_key.public().try_into().expect("32 octets"));
    let leaf = x509::sign(&valid_parameters(&world.client.to_string()), &key(), &world.user_certificate, &ecdsa);
    let chain = [leaf.expect("a certificate"), world.user_certificate.clone()];
    assert_eq!(world.validate(&chain), Err(ChainError::BadSignature));
    let mut parameters = valid_parameters(&world.user.to_string());
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let user = x509::sign(&parameters, &key(), world.root.certificate(), &ecdsa).expect("a certificate");
    assert_eq!(validate_user_chain(&[user], &world.roots, NOW), Err(ChainError::BadSignature));
}

#[test]
fn refuses_unknown_critical_extensions_and_name_constraints() {
    let world = World::new("a.test", "alice");
    let extension = |critical| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(critical);
        move |parameters: &mut CertificateParams| parameters.custom_extensions = vec![extension]
    };
    let leaf = world.client_with(extension(true));
    assert_eq!(world.validate(&[leaf, world.user_certificate.clone()]), Err(ChainError::CriticalExtension));
    assert_eq!(world.with_user(extension(true)), both(ChainError::CriticalExtension));
    let leaf = world.client_with(extension(false));
    assert!(world.validate(&[leaf, world.user_certificate.clone()]).is_ok());

    let constraints = rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("a.test".into())],
        excluded_subtrees: vec![],
    };
    let change = |parameters: &mut CertificateParams| parameters.name_constraints = Some(constraints);
    assert_eq!(world.with_user(change), both(ChainError::NameConstraints));
}

#[test]
fn a_certificate_with_any_extended_key_usage_is_accepted() {
    let world = World::new("a.test", "alice");
    let usage = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection];
    let leaf = world.client_with(|parameters| parameters.extended_key_usages = usage);
    assert!(world.validate(&[leaf, world.user_certificate.clone()]).is_ok());
}

#[test]
fn claims_are_read_without_validation() {
    let world = World::new("a.test", "alice");
    let mut chain = world.chain();
    // Broken signatures do not matter to a claim.
    for der in &mut chain {
        *der.last_mut().expect("octets") ^= 1;
    }
    assert_eq!(claimed_client(&chain), Ok(world.client.clone()));
    assert_eq!(claimed_user(&chain), Ok(world.user.clone()));
    assert_eq!(claimed_user(&chain[1..]), Ok(world.user.clone()));
    let leaf = world.client_with(|parameters| parameters.not_after = x509::date(NOW.minus(DAY)).expect("a date"));
    assert_eq!(claimed_validity_end(&[leaf, world.user_certificate.clone()]), Ok(NOW.minus(DAY)));
    assert_eq!(claimed_client(&[]), Err(ChainError::Length { found: 0, wanted: 2 }));
    assert_eq!(claimed_user(&[]), Err(ChainError::Length { found: 0, wanted: 1 }));
    assert_eq!(claimed_validity_end(&[]), Err(ChainError::Length { found: 0, wanted: 2 }));
    let long = vec![world.user_certificate.clone(); 3];
    assert_eq!(claimed_validity_end(&long), Err(ChainError::Length { found: 3, wanted: 2 }));
}

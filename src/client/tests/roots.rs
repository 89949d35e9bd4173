//! Following a domain's AS roots (X2).

use super::*;
use crate::client::ClientError;
use crate::client::renewal::{kept_info, tls_pins};
use crate::wire::info::RootStatement;

fn statement(of: &Authority, version: u64, roots: &[&AsRoot], signer: &AsRoot) -> RootStatement {
    let statement = RootStatement {
        domain: of.domain.as_bytes().into(),
        version,
        as_roots: roots.iter().map(|root| Opaque::from(root.certificate())).collect(),
        tls_ca_hashes: vec![Opaque::from([version as u8; 32].as_slice())].into(),
        signature: Opaque::default(),
    };
    statement.sign(signer.key())
}

fn published(of: &Authority, roots: &[&AsRoot], statements: &[&RootStatement]) -> DomainInfo {
    DomainInfo {
        as_roots: roots.iter().map(|root| Opaque::from(root.certificate())).collect(),
        root_statements: statements.iter().map(|statement| (*statement).clone()).collect(),
        ..of.info.clone()
    }
}

#[test]
fn a_clients_pins_follow_signed_statements_only() {
    let (_a, _b, mut alice, ..) = pair();
    let c = Authority::new("c.test");
    let (first, second) = (&c.root, &AsRoot::create(&c.domain, UnixMillis::now()).expect("a root"));
    alice.core.pin(&c.domain, &c.info).expect("is pinned");
    let both = [first, second];
    let forged = statement(&c, 1, &both, second);
    let rolled = statement(&c, 1, &both, first);
    let known = |party: &Party| party.core.state.domains[c.domain.as_str()].0.clone();
    let before = known(&alice);
    for refused in [
        published(&c, &[second], &[]),
        published(&c, &both, &[]),
        published(&c, &both, &[&forged]),
        published(&c, &[second], &[&rolled]),
        published(&c, &both, &[&RootStatement { domain: b"a.test".as_slice().into(), ..rolled.clone() }]),
    ] {
        assert!(matches!(alice.core.pin(&c.domain, &refused), Err(ClientError::Untrusted(_))));
        assert_eq!(known(&alice), before, "nothing has moved");
    }
    alice.core.pin(&c.domain, &published(&c, &both, &[&rolled])).expect("signed");
    // A statement that nobody known signed is not kept, though the roots are the same: it could say something about TLS.
    let unsigned = statement(&c, 9, &both, &AsRoot::create(&c.domain, UnixMillis::now()).expect("a root"));
    alice.core.pin(&c.domain, &published(&c, &both, &[&rolled, &unsigned])).expect("the same roots");
    assert_eq!(&kept_info(&known(&alice)).expect("readable").root_statements[..], std::slice::from_ref(&rolled));
    let retired = statement(&c, 2, &[second], second);
    alice.core.pin(&c.domain, &published(&c, &[second], &[&rolled, &retired])).expect("signed by the new one");
    assert!(alice.core.pin(&c.domain, &published(&c, &both, &[&rolled])).is_err(), "no way back");
    assert!(alice.core.pin(&c.domain, &c.info).is_err(), "nor to the beginning");
    let mut late = Party::new(&Authority::new("a.test"), "late");
    late.core.pin(&c.domain, &c.info).expect("is pinned");
    late.core.pin(&c.domain, &published(&c, &[second], &[&rolled, &retired])).expect("two steps at once");
}

#[test]
fn what_an_earlier_version_kept_is_readable_and_says_nothing_about_tls() {
    let (a, _b, mut alice, ..) = pair();
    let octets = encode(&a.info);
    let (last, earlier) = octets.split_last().expect("octets");
    assert_eq!(*last, 0, "an empty list");
    assert_eq!(kept_info(earlier).expect("readable"), a.info);
    assert!(kept_info(&earlier[..40]).is_err());
    let invited = alice.core.state.account.tls_ca_spki_hash;
    assert_eq!(tls_pins(&alice.core.state), [invited]);
    let said = statement(&a, 3, &[&a.root], &a.root);
    alice.core.pin(&a.domain, &published(&a, &[&a.root], &[&said])).expect("signed");
    assert_eq!(tls_pins(&alice.core.state), [[3; 32]], "the domain's own word counts");
}

#[test]
fn a_member_under_a_root_that_is_new_is_asked_about_once() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let c = Authority::new("c.test");
    let second = AsRoot::create(&c.domain, UnixMillis::now()).expect("a root");
    let both = published(&c, &[&c.root, &second], &[&statement(&c, 1, &[&c.root, &second], &c.root)]);
    let rolled = Authority { root: second, domain: c.domain.clone(), ds_key: c.ds_key.clone(), info: both.clone() };
    let mut carol = Party::new(&rolled, "carol");
    let made = carol.core.make_key_packages(1, false, UnixMillis::now()).expect("are made");
    let Ok(Service::Keys(message)) = decode(&made.service.0) else { panic!("no keys request") };
    let KeysRequest::Publish(published) = message.request else { panic!("no publish") };
    let package = mls::read_key_package(&bob.core.provider, &published.key_packages[0]).expect("is valid MLS");
    bob.core.pin(&c.domain, &both).expect("is pinned");
    alice.core.pin(&c.domain, &c.info).expect("is pinned");
    let made = bob.core.make_commit(&group, Plan::Add(vec![carol.user()]), vec![package], None).expect("is made");
    let (update, _) = update_of(&made);
    // Nobody was asked since alice was opened.
    alice.core.save().expect("saves");
    let mut alice = alice.crash();
    alice.deliver(&group, 2, &update.commit, Some(a.receipt(&group, 2, &update.commit)));
    assert!(matches!(alice.core.take_backlog(&group, None), Ok(Some(Need::Domain(domain))) if domain == c.domain));
    assert!(alice.core.doubted.contains_key(&c.domain));
    alice.core.pin(&c.domain, &both).expect("signed");
    assert!(matches!(alice.core.take_backlog(&group, None), Ok(None)));
    assert_eq!(alice.core.groups[&group].epoch().as_u64(), 2);
    assert!(alice.core.doubted.is_empty());
}

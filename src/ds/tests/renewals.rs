//! A path that says nothing new about who somebody is.

use super::*;

// Shows: while nothing about a leaf's credential is new, it is not checked against the roots again, but it is once its key or its
// user's is revoked, and once it has ended.
#[test]
fn an_unchanged_credential_is_checked_again_when_it_has_to_be() {
    let (mut hub, mut alice, mut others) = group(&["bob@b.test"]);
    let a = alice.uri.domain().clone();
    let known = std::mem::take(&mut hub.roots);
    let request = others[0].update();
    assert!(matches!(ask(&mut hub, &others[0], &request), Err(Refusal::NeedsRoots(_))), "bob's leaf is out of a KeyPackage");
    // Alice brought her leaf when she added bob.
    let request = alice.update();
    ask(&mut hub, &alice, &request).expect("accepted without looking at roots");
    alice.merge();

    let member = hub.state().members[&0].clone();
    let request = alice.update();
    let set_end = |hub: &mut TestHub, end| {
        let state = hub.state.as_mut().expect("the group is made");
        state.members.get_mut(&0).expect("alice").not_after_ms = end;
    };
    set_end(&mut hub, 1);
    assert!(matches!(ask(&mut hub, &alice, &request), Err(Refusal::NeedsRoots(_))), "it has ended");
    set_end(&mut hub, member.not_after_ms);
    hub.roots = known;
    let nothing = hub.revoked[&a].clone();
    for revoked in [member.user_key_hash, member.client_key_hash()] {
        let keys = crate::identity::RevokedKeys::new([revoked], crate::base::UnixMillis(u64::MAX));
        hub.revoked.insert(a.clone(), std::sync::Arc::new(keys));
        assert_eq!(code(ask(&mut hub, &alice, &request)), ErrorCode::InvalidCredential);
    }
    hub.revoked.insert(a.clone(), nothing);
    ask(&mut hub, &alice, &request).expect("accepted");
}

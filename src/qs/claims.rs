//! Who gets KeyPackages, and which (R7, R8, X5).

use crate::base::limits::{Limits, RATE_KEYS_MAX};
use crate::base::rate::{Rate, RateLimiter};
use crate::base::rule::{answer, on};
use crate::base::{Domain, UnixMillis, UserUri};
use crate::identity::RevokedKeys;
use crate::identity::chain::{AsRoots, ClientIdentity, claimed_client, validate_client_chain};
use crate::mls::CIPHERSUITE;
use crate::wire::keys::{ClaimKeyPackages, KeysMessage, KeysRequest};
use crate::wire::{ClientRequest, ErrorCode, Rejection};

/// The chain of the asking client, if it says that it is of the domain `through` that the request came through. Looked at
/// before anything is validated: only the authenticated domain itself makes us fetch its roots.
pub fn claimed_chain(message: &KeysMessage, through: &Domain) -> Result<Vec<Vec<u8>>, Rejection> {
    let chain: Vec<Vec<u8>> = message.certificates.iter().map(|certificate| certificate.to_vec()).collect();
    // QS-032 (R8): the asking client is of the domain that the request came through.
    let claimed = claimed_client(&chain).map_err(|_| answer("QS-032", ErrorCode::InvalidCredential, ErrorCode::Internal))?;
    if on("QS-032") && claimed.domain() != through {
        return Err(ErrorCode::WrongOrigin.into());
    }
    Ok(chain)
}

/// Who asks. `roots` and `revoked`: of the domain that the request came through, as far as they are known.
pub fn authenticate(
    request: &ClientRequest,
    chain: &[Vec<u8>],
    roots: Option<&AsRoots>,
    revoked: Option<&RevokedKeys>,
    now: UnixMillis,
) -> Result<ClientIdentity, Rejection> {
    // QS-039 (R8): the asker's chain leads to an AS root of its domain, and is valid now.
    let refused = || answer("QS-039", ErrorCode::InvalidCredential, ErrorCode::Internal);
    let asker = validate_client_chain(chain, roots.ok_or_else(refused)?, now).map_err(|_| refused())?;
    // QS-030: the request is signed by the key that its chain certifies.
    if on("QS-030") && !request.is_signed_by(&asker.public_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    // QS-038 (X1): neither the asker's key nor its user's is revoked.
    if on("QS-038") && revoked.is_some_and(|revoked| revoked.revokes(&asker)) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    Ok(asker)
}

/// Whether this asker may ask this of the node of `domain`.
pub fn check_asked(asker: &ClientIdentity, request: &KeysRequest, domain: &Domain) -> Result<(), Rejection> {
    // QS-031: a client publishes and counts its own, at its own node.
    if on("QS-031") && !matches!(request, KeysRequest::Claim(_)) && asker.client.domain() != domain {
        return Err(ErrorCode::NotAuthorized.into());
    }
    Ok(())
}

/// Whose KeyPackages are claimed from the node of `domain`.
pub fn claimed_user(body: &ClaimKeyPackages, domain: &Domain) -> Result<UserUri, Rejection> {
    // QS-033: KeyPackages of the one ciphersuite are asked for.
    if on("QS-033") && body.ciphersuite != CIPHERSUITE {
        return Err(ErrorCode::Unsupported.into());
    }
    // QS-036: a user of this domain is asked for.
    match UserUri::from_bytes(&body.user) {
        Ok(user) if user.domain() == domain => Ok(user),
        _ => Err(answer("QS-036", ErrorCode::UnknownUser, ErrorCode::Internal).into()),
    }
}

/// A KeyPackage that might be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// KeyPackageRef.
    pub reference: Vec<u8>,
    /// Its client's URI.
    pub client: String,
    /// Whether it stays when it is handed out.
    pub last_resort: bool,
}

/// Which KeyPackages a claim gets: the first of each client. `candidates`: by client, of each the ordinary ones before the one
/// of last resort. `blocked`: whether the user blocks the asker.
pub fn choose(candidates: Vec<Candidate>, blocked: bool) -> Result<Vec<Candidate>, Rejection> {
    // QS-037 (X5): the user does not block the asker, who must not learn that it does.
    if on("QS-037") && blocked {
        return Err(ErrorCode::UnknownUser.into());
    }
    let mut chosen: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if chosen.last().is_none_or(|last| last.client != candidate.client) {
            chosen.push(candidate);
        }
    }
    // QS-034: there is such a user, with a KeyPackage to give.
    if on("QS-034") && chosen.is_empty() { Err(ErrorCode::UnknownUser.into()) } else { Ok(chosen) }
}

/// How often KeyPackages may be claimed, and were lately. Kept in memory: a restart forgives.
#[derive(Debug)]
pub struct ClaimRates {
    users: RateLimiter<UserUri>,
    domains: RateLimiter<Domain>,
}

impl ClaimRates {
    /// The rates that the limits name.
    pub fn new(limits: &Limits) -> Self {
        Self {
            users: RateLimiter::new(Rate::per_hour(limits.claims_per_hour_max), RATE_KEYS_MAX),
            domains: RateLimiter::new(Rate::per_hour(limits.claims_per_domain_per_hour_max), RATE_KEYS_MAX),
        }
    }

    /// Counts a claim of `asker` at the node of `domain`, or refuses it and says when to come back. Our own users are known one by
    /// one; another domain can have as many as it likes, and is counted as a whole, too: `of_domain_max` is how many of its claims
    /// there may be in an hour.
    pub fn take(&mut self, asker: &UserUri, domain: &Domain, of_domain_max: u32, now: UnixMillis) -> Result<(), Rejection> {
        // QS-035 (R7): one user, and all of another domain together, claim at most so many in an hour.
        if on("QS-035") {
            self.users.take(asker, now).map_err(Rejection::rate_limited)?;
            if asker.domain() != domain {
                let rate = Rate::per_hour(of_domain_max);
                self.domains.take_at(asker.domain(), rate, 1, now).map_err(Rejection::rate_limited)?;
            }
        }
        Ok(())
    }

    /// Forgets the claims of another domain together, as when its limit has changed.
    pub fn forget_domain(&mut self, domain: &Domain) {
        self.domains.forget(domain);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::crypto::SigningKey;
    use crate::base::ids::RequestId;
    use crate::identity::AsRoot;
    use crate::identity::revoked::key_hash;
    use crate::mls::testing::TestClient;
    use crate::wire::{Content, Opaque, Service};

    fn domain(name: &str) -> Domain {
        name.parse().expect("a domain")
    }

    fn message(client: &TestClient, request: KeysRequest) -> KeysMessage {
        KeysMessage { certificates: client.chain.iter().map(|der| Opaque::from(der.as_slice())).collect(), request }
    }

    fn signed(message: KeysMessage, key: &SigningKey) -> ClientRequest {
        Content::new(&domain("a.test"), RequestId([1; 16]), UnixMillis::now(), Service::Keys(message)).sign(key)
    }

    // covers QS-030, QS-031, QS-032, QS-038, QS-039
    #[test]
    fn an_asker_proves_who_it_is_through_its_own_domain() {
        let now = UnixMillis::now();
        let root = AsRoot::create(&domain("b.test"), now).expect("a root");
        let roots = AsRoots::new(domain("b.test"), vec![root.certificate().to_vec()]).expect("roots");
        let (bob, other) = (TestClient::new(&root, "bob"), SigningKey::generate().expect("a key"));
        let count = message(&bob, KeysRequest::Count);
        let chain = claimed_chain(&count, &domain("b.test")).expect("of this domain");
        let code = |result: Result<Vec<Vec<u8>>, Rejection>| result.expect_err("refused").code;
        assert_eq!(code(claimed_chain(&count, &domain("a.test"))), ErrorCode::WrongOrigin);
        let garbage = KeysMessage { certificates: vec![vec![0x30; 9].into()].into(), ..count.clone() };
        assert_eq!(code(claimed_chain(&garbage, &domain("b.test"))), ErrorCode::InvalidCredential);

        let request = signed(count.clone(), &bob.key);
        let asked = |request: &ClientRequest, roots: Option<&AsRoots>, revoked: Option<&RevokedKeys>, now: UnixMillis| {
            authenticate(request, &chain, roots, revoked, now).map_err(|rejection| rejection.code)
        };
        let asker = asked(&request, Some(&roots), None, now).expect("authenticated");
        assert_eq!(asked(&signed(count, &other), Some(&roots), None, now), Err(ErrorCode::BadSignature));
        let invalid = Err(ErrorCode::InvalidCredential);
        assert_eq!(asked(&request, None, None, now), invalid);
        assert_eq!(asked(&request, Some(&roots), None, now.plus(Duration::from_secs(400 * 86_400))), invalid, "expired");
        let list = |hash: [u8; 32]| RevokedKeys::new([hash], UnixMillis(u64::MAX));
        for revoked in [asker.user_key_hash, key_hash(&asker.public_key)] {
            assert_eq!(asked(&request, Some(&roots), Some(&list(revoked)), now), invalid);
        }
        assert!(asked(&request, Some(&roots), Some(&list([1; 32])), now).is_ok());

        let claim = KeysRequest::Claim(ClaimKeyPackages { user: Opaque::default(), ciphersuite: 1 });
        assert_eq!(check_asked(&asker, &KeysRequest::Count, &domain("a.test")), Err(ErrorCode::NotAuthorized.into()));
        assert_eq!(check_asked(&asker, &KeysRequest::Count, &domain("b.test")), Ok(()));
        assert_eq!(check_asked(&asker, &claim, &domain("a.test")), Ok(()));
    }

    // covers QS-033, QS-036
    #[test]
    fn users_of_this_domain_are_claimed_in_the_one_ciphersuite() {
        let claim = |user: &str, ciphersuite| {
            let body = ClaimKeyPackages { user: user.as_bytes().into(), ciphersuite };
            claimed_user(&body, &domain("a.test")).map_err(|rejection| rejection.code)
        };
        assert_eq!(claim("mimi://a.test/u/alice", 1).expect("accepted").name(), "alice");
        assert_eq!(claim("mimi://a.test/u/alice", 2), Err(ErrorCode::Unsupported));
        assert_eq!(claim("mimi://b.test/u/alice", 1), Err(ErrorCode::UnknownUser));
        assert_eq!(claim("alice", 1), Err(ErrorCode::UnknownUser));
    }

    // covers QS-034, QS-037
    #[test]
    fn a_claim_gets_the_first_of_each_client() {
        let candidate = |client: &str, reference: u8, last_resort| Candidate {
            reference: vec![reference],
            client: client.to_owned(),
            last_resort,
        };
        let there = vec![
            candidate("a", 1, false),
            candidate("a", 2, false),
            candidate("a", 3, true),
            candidate("b", 4, true),
            candidate("c", 5, false),
        ];
        let chosen = choose(there.clone(), false).expect("some");
        assert_eq!(chosen.iter().map(|one| one.reference[0]).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(choose(there, true), Err(ErrorCode::UnknownUser.into()));
        assert_eq!(choose(Vec::new(), false), Err(ErrorCode::UnknownUser.into()));
    }

    // covers QS-035
    #[test]
    fn claims_are_counted_by_user_and_by_domain() {
        let limits = Limits { claims_per_hour_max: 2, ..Limits::default() };
        let (a, mut rates) = (domain("a.test"), ClaimRates::new(&limits));
        let user = |name: &str| name.parse::<UserUri>().expect("a user");
        let (bob, ben, anna) = (user("mimi://b.test/u/bob"), user("mimi://b.test/u/ben"), user("mimi://a.test/u/anna"));
        let start = UnixMillis(1_700_000_000_000);
        for _ in 0..2 {
            assert_eq!(rates.take(&bob, &a, 3, start), Ok(()));
        }
        let later = start.plus(Duration::from_secs(60));
        let refused = rates.take(&bob, &a, 3, later).expect_err("refused");
        assert_eq!(refused, Rejection::rate_limited(Duration::from_secs(29 * 60)), "and told when to come back");
        assert_eq!(rates.take(&ben, &a, 3, later), Ok(()));
        assert_eq!(rates.take(&ben, &a, 3, later).expect_err("refused").code, ErrorCode::RateLimited, "of the domain");
        for _ in 0..2 {
            assert_eq!(rates.take(&anna, &a, 3, later), Ok(()), "another's domain does not count");
        }
        let bea = user("mimi://b.test/u/bea");
        assert!(rates.take(&bea, &a, 3, later).is_err());
        rates.forget_domain(bea.domain());
        assert_eq!(rates.take(&bea, &a, 9, later), Ok(()), "a domain may have a limit of its own");
        assert_eq!(rates.take(&bob, &a, 3, start.plus(Duration::from_secs(60 * 60))), Ok(()), "an hour is over");
    }
}

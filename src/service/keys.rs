//! Publishing, counting and claiming KeyPackages (R7).

use std::sync::{Mutex, PoisonError};

use super::{Failure, Service};
use crate::base::limits::{KEY_PACKAGE_REMAINING_MIN, Limits};
use crate::base::{Context as _, Domain, UnixMillis, UserUri};
use crate::identity::ClientIdentity;
use crate::identity::revoked::key_hash;
use crate::qs::claims::{ClaimRates, authenticate, check_asked, claimed_chain, claimed_user};
use crate::qs::key_packages::{Publication, check_queues};
use crate::storage::answers::RequestKey;
use crate::storage::key_packages::{ClaimKeyPackages, Claimed, PublishKeyPackages, Published};
use crate::wire::keys::{
    ClaimKeyPackages as ClaimBody, ClaimedKeyPackage, KeyPackageCount, KeysMessage, KeysRequest,
    PublishKeyPackages as PublishBody,
};
use crate::wire::{ClientRequest, ErrorCode, Rejection, Reply};

/// How often KeyPackages may be claimed.
pub(super) struct Claims(Mutex<ClaimRates>);

impl Claims {
    /// The rates that the limits name.
    pub(super) fn new(limits: &Limits) -> Self {
        Self(Mutex::new(ClaimRates::new(limits)))
    }

    /// See [`ClaimRates::forget_domain`].
    pub(super) fn forget_domain(&self, domain: &Domain) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).forget_domain(domain);
    }

    /// See [`ClaimRates::take`].
    fn take(&self, asker: &UserUri, domain: &Domain, of_domain_max: u32, now: UnixMillis) -> Result<(), Rejection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(asker, domain, of_domain_max, now)
    }
}

impl Service {
    /// Answers a request about KeyPackages. `through`: the authenticated domain that the request came through.
    pub(super) async fn keys_request(
        &self,
        request: &ClientRequest,
        message: &KeysMessage,
        through: &Domain,
    ) -> Result<Vec<u8>, Failure> {
        let now = UnixMillis::now();
        let chain = claimed_chain(message, through)?;
        self.know_domain(through).await?;
        let asker = || {
            let (roots, revoked) = (self.directory.roots(), self.directory.revoked());
            let of_domain = (roots.get(through).map(AsRef::as_ref), revoked.get(through).map(AsRef::as_ref));
            authenticate(request, &chain, of_domain.0, of_domain.1, now)
        };
        let asker = match asker() {
            // Under a root that its domain has introduced since, perhaps (X2).
            Err(refused) if refused.code == ErrorCode::InvalidCredential => {
                if self.refresh_roots(through).await {
                    asker()
                } else {
                    Err(refused)
                }
            }
            other => other,
        }?;
        self.count_request(&asker.public_key, now)?;
        let key = RequestKey::new(&asker.public_key, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        check_asked(&asker, &message.request, &self.domain)?;
        match &message.request {
            KeysRequest::Claim(body) => self.claim(key, &asker, body, now).await,
            KeysRequest::Publish(body) => self.publish(key, &asker, body, now).await,
            KeysRequest::Count => {
                let usable_until = now.plus(KEY_PACKAGE_REMAINING_MIN);
                let (available, last_resort) = self.storage.key_package_count(&asker.client, usable_until).await?;
                let count = KeyPackageCount {
                    available: u32::try_from(available).unwrap_or(u32::MAX),
                    last_resort: u8::from(last_resort > 0),
                };
                Ok(Self::encode_reply(Reply::KeyPackageCount(count)))
            }
        }
    }

    async fn publish(
        &self,
        key: RequestKey,
        publisher: &ClientIdentity,
        body: &PublishBody,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let roots = self.directory.roots();
        let publication = Publication {
            publisher,
            domain: &self.domain,
            roots: roots.get(&self.domain).context("our own AS roots are not known")?,
            limits: &self.limits,
            now,
            open: &|information| self.open_information(information),
        };
        let key_packages = publication.decide(body)?;
        let queues: Vec<_> = key_packages.iter().map(|key_package| key_package.invite.queue_id).collect();
        check_queues(&key_packages, &publisher.client, &self.storage.queue_clients(&queues).await?)?;
        let response = Self::encode_reply(Reply::Done);
        let publish = PublishKeyPackages {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            client: publisher.client.clone(),
            client_key_hash: key_hash(&publisher.public_key),
            key_packages,
            limit: self.limits.key_packages_per_client_max as u64,
            now,
        };
        match self.storage.write(publish).await? {
            Published::Stored => Ok(response),
            Published::Known(known) => Self::answer_known(known, now),
            Published::OverLimit => Err(ErrorCode::TooLarge.into()),
            Published::Repeated => Err(ErrorCode::InvalidKeyPackage.into()),
        }
    }

    async fn claim(
        &self,
        key: RequestKey,
        asker: &ClientIdentity,
        body: &ClaimBody,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let user = claimed_user(body, &self.domain)?;
        // Before it is known whether there is anything to give: who tries names one after the other is slowed down, too.
        let of_domain_max = self.peers.policies().limits(asker.user.domain()).claims_per_hour_max;
        self.claims.take(&asker.user, &self.domain, of_domain_max, now)?;
        let claim = ClaimKeyPackages {
            key,
            answer_expires_at: Self::answer_expiry(now),
            user,
            asker: asker.user.clone(),
            usable_until: now.plus(KEY_PACKAGE_REMAINING_MIN),
            respond: encode_claimed,
        };
        match self.storage.write(claim).await? {
            Claimed::Answered(response) => Ok(response),
            Claimed::Known(known) => Self::answer_known(known, now),
            Claimed::Refused(rejection) => Err(rejection.into()),
        }
    }
}

fn encode_claimed(claimed: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let key_packages = claimed
        .into_iter()
        .map(|(client, key_package)| ClaimedKeyPackage { client: client.into_bytes().into(), key_package: key_package.into() })
        .collect();
    Service::encode_reply(Reply::KeyPackages(key_packages))
}

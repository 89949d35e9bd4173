//! Publishing, counting and claiming KeyPackages (R7).

use super::{Failure, Service};
use crate::base::limits::KEY_PACKAGE_REMAINING_MIN;
use crate::base::{Domain, UnixMillis};
use crate::identity::ClientIdentity;
use crate::identity::chain::{claimed_client, validate_client_chain};
use crate::mls::CIPHERSUITE;
use crate::qs::key_packages::decide_publish;
use crate::storage::answers::RequestKey;
use crate::storage::key_packages::{ClaimKeyPackages, Claimed, PublishKeyPackages, Published};
use crate::wire::keys::{
    ClaimKeyPackages as ClaimBody, ClaimedKeyPackage, KeyPackageCount, KeysMessage, KeysRequest,
    PublishKeyPackages as PublishBody,
};
use crate::wire::{ClientRequest, ErrorCode, Reply};

impl Service {
    /// Answers a request about KeyPackages. `through`: the authenticated domain that the request came through.
    pub(super) async fn keys_request(
        &self,
        request: &ClientRequest,
        message: &KeysMessage,
        through: &Domain,
    ) -> Result<Vec<u8>, Failure> {
        let now = UnixMillis::now();
        let asker = self.asker(message, through, now).await?;
        // QS-030: signed by the key that the chain certifies.
        if !request.is_signed_by(&asker.public_key) {
            return Err(ErrorCode::BadSignature.into());
        }
        let key = RequestKey::new(&asker.public_key, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        match &message.request {
            KeysRequest::Claim(body) => self.claim(key, body, now).await,
            // QS-031: one's own KeyPackages, at one's own node.
            _ if *asker.client.domain() != self.domain => Err(ErrorCode::NotAuthorized.into()),
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

    /// QS-032 (R8): the asking client, of the domain that its request came through.
    async fn asker(&self, message: &KeysMessage, through: &Domain, now: UnixMillis) -> Result<ClientIdentity, Failure> {
        let chain: Vec<Vec<u8>> = message.certificates.iter().map(|certificate| certificate.to_vec()).collect();
        let claimed = claimed_client(&chain).map_err(|_| ErrorCode::InvalidCredential)?;
        // Compared first: only the authenticated domain itself makes us fetch its roots.
        if claimed.domain() != through {
            return Err(ErrorCode::NotAuthorized.into());
        }
        self.fetch_domains(std::slice::from_ref(through)).await?;
        let roots = self.directory.roots();
        let roots = roots.get(through).ok_or(ErrorCode::InvalidCredential)?;
        Ok(validate_client_chain(&chain, roots, now).map_err(|_| ErrorCode::InvalidCredential)?)
    }

    async fn publish(
        &self,
        key: RequestKey,
        publisher: &ClientIdentity,
        body: &PublishBody,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let roots = self.directory.roots();
        let roots = roots.get(&self.domain).ok_or(ErrorCode::Internal)?;
        let key_packages = decide_publish(publisher, body, &self.domain, roots, &self.limits, now)?;
        let response = Self::encode_reply(Reply::Done);
        let publish = PublishKeyPackages {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            client: publisher.client.clone(),
            key_packages,
            limit: self.limits.key_packages_per_client_max as u64,
            now,
        };
        match self.storage.write(publish).await? {
            Published::Stored => Ok(response),
            Published::Known(known) => Self::answer_known(known, now),
            // QS-010: at most so many per client, with those published before.
            Published::OverLimit => Err(ErrorCode::TooLarge.into()),
            // QS-016 (R7): published once.
            Published::Repeated => Err(ErrorCode::InvalidKeyPackage.into()),
        }
    }

    async fn claim(&self, key: RequestKey, body: &ClaimBody, now: UnixMillis) -> Result<Vec<u8>, Failure> {
        let user = self.own_user(&body.user)?;
        // QS-033: the one ciphersuite that KeyPackages are kept for.
        if body.ciphersuite != CIPHERSUITE {
            return Err(ErrorCode::Unsupported.into());
        }
        let claim = ClaimKeyPackages {
            key,
            answer_expires_at: Self::answer_expiry(now),
            user,
            usable_until: now.plus(KEY_PACKAGE_REMAINING_MIN),
            respond: encode_claimed,
        };
        match self.storage.write(claim).await? {
            Claimed::Answered(response) => Ok(response),
            Claimed::Known(known) => Self::answer_known(known, now),
            // QS-034: there is such a user, with a KeyPackage to give.
            Claimed::None => Err(ErrorCode::UnknownUser.into()),
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

//! Accounts: enrolment and invitations, revocation, blocks, and who delivers (S20, X1, X5, X6).

use super::{Failure, Service};
use crate::accounts::requests::{
    authenticate, blocked_name, check_account, check_client, check_enrol, check_invited, client_to_revoke,
};
use crate::accounts::{hash_token, new_token};
use crate::base::ids::RequestId;
use crate::base::limits::INVITATION_LIFETIME;
use crate::base::{Context as _, Fault, UnixMillis, UserUri};
use crate::identity::{ClientIdentity, UserIdentity};
use crate::storage::Storage;
use crate::storage::accounts::{EnrolUser, Enrolment, Invite, RenewUser};
use crate::storage::answers::RequestKey;
use crate::storage::blocks::{BlockChanged, ChangeBlock};
use crate::storage::clients::{DeleteUser, RevokeClient, Revoked};
use crate::wire::accounts::{AccountsMessage, AccountsRequest, BlockedName, Enrol, Enrolled, RevokeClient as RevokeBody};
use crate::wire::{ClientRequest, ErrorCode, Invitation, List, Opaque, Rejection, Reply};

impl Service {
    /// Answers a request about an account. It proves itself by the user key, whoever the connection belongs to.
    pub(super) async fn accounts_request(
        self: &std::sync::Arc<Self>,
        request: &ClientRequest,
        message: &AccountsMessage,
    ) -> Result<Vec<u8>, Failure> {
        if let AccountsRequest::Enrol(body) = &message.request {
            return self.enrol(request, body).await;
        }
        let now = UnixMillis::now();
        let user = self.signed_by_user(request, &message.certificates, now)?;
        self.count_request(&user.public_key, now)?;
        let key = RequestKey::new(&user.public_key, request.content.request_id, request.content.digest());
        // A repeat is answered even when the first try ended the account.
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        self.check_user(&user).await?;
        match &message.request {
            AccountsRequest::Enrol(_) => Err(ErrorCode::Internal.into()),
            AccountsRequest::RevokeClient(body) => self.revoke_client(key, &user, body, now).await,
            AccountsRequest::DeleteUser => self.delete_user(key, &user, now).await,
            AccountsRequest::Block(body) => self.change_block(key, &user, body, true, now).await,
            AccountsRequest::Unblock(body) => self.change_block(key, &user, body, false, now).await,
            AccountsRequest::Renew => self.renew(key, &user, now).await,
            AccountsRequest::Hubs => {
                let hubs = self.storage.hubs_of(&user.user).await?;
                let hubs = hubs.iter().map(|hub| Opaque::from(hub.as_bytes())).collect();
                Ok(Self::encode_reply(Reply::Hubs(hubs)))
            }
        }
    }

    /// The user whose key signed a request. Whether the account stands is another question, see [`Service::check_user`].
    pub(super) fn signed_by_user(
        &self,
        request: &ClientRequest,
        certificates: &List<Opaque>,
        now: UnixMillis,
    ) -> Result<UserIdentity, Failure> {
        let roots = self.directory.roots();
        let roots = roots.get(&self.domain).context("our own AS roots are not known")?;
        Ok(authenticate(request, certificates, roots, now)?)
    }

    /// Whether the account of an authenticated user stands.
    pub(super) async fn check_user(&self, user: &UserIdentity) -> Result<(), Failure> {
        let enrolled = self.storage.enrolled_key_hash(&user.user).await?;
        let revoked = self.directory.revoked();
        Ok(check_account(user, enrolled, revoked.get(&self.domain).map(AsRef::as_ref))?)
    }

    /// Whether one of our own clients is still served.
    pub(super) fn check_client(&self, client: &ClientIdentity) -> Result<(), Rejection> {
        check_client(client, self.directory.revoked().get(&self.domain).map(AsRef::as_ref))
    }

    async fn enrol(self: &std::sync::Arc<Self>, request: &ClientRequest, body: &Enrol) -> Result<Vec<u8>, Failure> {
        let now = UnixMillis::now();
        check_enrol(request, body)?;
        // The token names the sender, and a repeat must be recognised when the token is used up.
        let key = RequestKey::new(&body.token, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        let token_hash = hash_token(&body.token);
        let user = match check_invited(self.storage.invited_user(&token_hash, now).await?) {
            Ok(user) => user,
            // Perhaps used up a moment ago, by this very request.
            Err(rejection) => return self.stored_answer(&key, now).await?.ok_or(rejection.into()),
        };
        let certificate = self
            .own_roots()
            .issuer()
            .issue_user(&body.certificate_request, &user, now)
            .with_context(|| format!("could not issue a certificate for {user}"))?;
        let reply = Enrolled { user: user.to_bytes().into(), certificate: certificate.as_slice().into() };
        let response = Self::encode_reply(Reply::Enrolled(reply));
        let enrol = EnrolUser {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            token_hash,
            user: user.clone(),
            certificate,
            now,
        };
        match self.storage.write(enrol).await? {
            Enrolment::Done(revoked) => {
                tracing::info!(%user, "enrolled a user");
                if revoked.is_some() {
                    tracing::info!(%user, "the key that the user had before is revoked");
                    self.status_changed().await;
                }
                Ok(response)
            }
            Enrolment::Known(known) => Self::answer_known(known, now),
            Enrolment::TokenGone => Err(ErrorCode::InvalidToken.into()),
        }
    }

    async fn revoke_client(
        self: &std::sync::Arc<Self>,
        key: RequestKey,
        user: &UserIdentity,
        body: &RevokeBody,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let client = client_to_revoke(&user.user, body)?;
        let response = Self::encode_reply(Reply::Done);
        let revoke = RevokeClient {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            client: client.clone(),
            now,
        };
        let revoked = self.storage.write(revoke).await?;
        if let Revoked::Done(_) = revoked {
            tracing::info!(%client, "a client is revoked");
        }
        self.revoked(revoked, response, now).await
    }

    async fn delete_user(
        self: &std::sync::Arc<Self>,
        key: RequestKey,
        user: &UserIdentity,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let response = Self::encode_reply(Reply::Done);
        let delete = DeleteUser {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            user: user.user.clone(),
            user_key_hash: user.user_key_hash,
            now,
        };
        let revoked = self.storage.write(delete).await?;
        if let Revoked::Done(_) = revoked {
            tracing::info!(user = %user.user, "a user is deleted");
        }
        self.revoked(revoked, response, now).await
    }

    async fn revoked(
        self: &std::sync::Arc<Self>,
        revoked: Revoked,
        response: Vec<u8>,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        match revoked {
            Revoked::Done(_) => {
                self.status_changed().await;
                Ok(response)
            }
            Revoked::Known(known) => Self::answer_known(known, now),
            Revoked::UnknownClient => Err(ErrorCode::UnknownUser.into()),
        }
    }

    /// The user's certificate anew, for the key that has proved itself (X2).
    async fn renew(&self, key: RequestKey, user: &UserIdentity, now: UnixMillis) -> Result<Vec<u8>, Failure> {
        let public_key = user.public_key.as_slice().try_into().context("an Ed25519 key has 32 octets")?;
        let issued = self.own_roots().issuer().issue_user_again(&public_key, &user.user, now);
        let certificate = issued.with_context(|| format!("could not renew the certificate of {}", user.user))?;
        let reply = Enrolled { user: user.user.to_bytes().into(), certificate: certificate.as_slice().into() };
        let response = Self::encode_reply(Reply::Enrolled(reply));
        let renew = RenewUser {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            user: user.user.clone(),
            certificate,
        };
        match self.storage.write(renew).await? {
            None => Ok(response),
            Some(known) => Self::answer_known(known, now),
        }
    }

    async fn change_block(
        &self,
        key: RequestKey,
        user: &UserIdentity,
        body: &BlockedName,
        blocked: bool,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let name = blocked_name(&user.user, body)?;
        let response = Self::encode_reply(Reply::Done);
        let change = ChangeBlock {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            user: user.user.clone(),
            name,
            blocked,
        };
        match self.storage.write(change).await? {
            BlockChanged::Done => Ok(response),
            BlockChanged::Known(known) => Self::answer_known(known, now),
            BlockChanged::OverLimit => Err(ErrorCode::TooLarge.into()),
        }
    }

    /// What an operator's command revoked beside this node is noticed.
    pub(super) async fn notice_revocations(self: &std::sync::Arc<Self>) -> Result<(), Fault> {
        let known = self.directory.known_status(&self.domain).map_or(0, |known| known.version);
        if self.storage.revoked_version().await? > known {
            self.status_changed().await;
        }
        Ok(())
    }

    /// Keys of this domain were revoked, and that is on disk: decisions know it from now on, and what revoked clients have open
    /// ends. A failure here takes nothing back: the next start reads the list anew.
    pub(super) async fn status_changed(self: &std::sync::Arc<Self>) {
        if let Err(fault) = self.own_status_changed().await {
            tracing::error!("a revocation is on disk and not yet in force: {fault}");
        }
        self.waiters.wake_all();
    }
}

/// Invites a user: the token is stored only as its hash, and the line to hand out is returned. `tls_ca_spki_hash`: of the CA
/// that issued the node's TLS certificate.
pub async fn invite(storage: &Storage, user: &UserUri, tls_ca_spki_hash: [u8; 32]) -> Result<Invitation, Fault> {
    let token = new_token();
    let expires_at = UnixMillis::now().plus(INVITATION_LIFETIME);
    storage.write(Invite { token_hash: hash_token(&token), user: user.clone(), expires_at }).await?;
    Ok(Invitation { domain: user.domain().clone(), token, tls_ca_spki_hash })
}

/// Deletes a user, as the operator: as [`AccountsRequest::DeleteUser`] does. A node that runs beside this notices. `false` when
/// there is no such user.
pub async fn delete(storage: &Storage, user: &UserUri) -> Result<bool, Fault> {
    let Some(user_key_hash) = storage.enrolled_key_hash(user).await? else { return Ok(false) };
    let now = UnixMillis::now();
    let delete = DeleteUser {
        // Nobody asks for the answer.
        key: RequestKey::new(b"operator", RequestId::random(), [0; 32]),
        response: Vec::new(),
        answer_expires_at: now,
        user: user.clone(),
        user_key_hash,
        now,
    };
    storage.write(delete).await?;
    Ok(true)
}

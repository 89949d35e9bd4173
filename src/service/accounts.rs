//! Enrolment and invitations (S20).

use super::{Failure, Service};
use crate::accounts::{hash_token, new_token};
use crate::base::limits::INVITATION_LIFETIME;
use crate::base::{Context as _, Fault, UnixMillis, UserUri};
use crate::identity::issue::key_of_request;
use crate::storage::Storage;
use crate::storage::accounts::{EnrolUser, Enrolment, Invite};
use crate::storage::answers::RequestKey;
use crate::wire::accounts::{AccountsMessage, AccountsRequest, Enrol, Enrolled};
use crate::wire::{ClientRequest, ErrorCode, Invitation, Reply};

impl Service {
    /// Answers a request about an account.
    pub(super) async fn accounts_request(&self, request: &ClientRequest, message: &AccountsMessage) -> Result<Vec<u8>, Failure> {
        match &message.request {
            AccountsRequest::Enrol(body) => self.enrol(request, body).await,
            _ => Err(ErrorCode::Unsupported.into()),
        }
    }

    async fn enrol(&self, request: &ClientRequest, body: &Enrol) -> Result<Vec<u8>, Failure> {
        let now = UnixMillis::now();
        // AS-002: the certificate request proves possession of its Ed25519 key.
        let public_key = key_of_request(&body.certificate_request).map_err(|_| ErrorCode::InvalidCredential)?;
        // AS-003: the envelope is signed by that same key. Before anything is looked up: a repeat is answered to the key's holder
        // only.
        if !request.is_signed_by(&public_key) {
            return Err(ErrorCode::BadSignature.into());
        }
        // The token names the sender, and a repeat must be recognised when the token is used up.
        let key = RequestKey::new(&body.token, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        let token_hash = hash_token(&body.token);
        // AS-001: the token is of an invitation that is neither used nor expired.
        let Some(user) = self.storage.invited_user(&token_hash, now).await? else {
            // Perhaps used up a moment ago, by this very request.
            return self.stored_answer(&key, now).await?.ok_or(ErrorCode::InvalidToken.into());
        };
        let certificate = self
            .keys
            .as_root
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
            Enrolment::Done => {
                tracing::info!(%user, "enrolled a user");
                Ok(response)
            }
            Enrolment::Known(known) => Self::answer_known(known, now),
            Enrolment::TokenGone => Err(ErrorCode::InvalidToken.into()),
        }
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

//! Queueing Service requests of our own clients, and subscriptions.

use std::sync::Arc;

use quinn::SendStream;

use super::{Failure, Service};
use crate::base::ids::QueueId;
use crate::base::limits::FETCH_ENTRIES_MAX;
use crate::base::{UnixMillis, UserUri};
use crate::identity::ClientIdentity;
use crate::identity::chain::validate_client_chain;
use crate::storage::answers::RequestKey;
use crate::storage::queues::{AckEntries, CreateQueue, DeleteQueue, Queue};
use crate::transport::CloseCode;
use crate::transport::frame::write_frame;
use crate::wire::qs::{CreateQueue as CreateQueueBody, FetchEntries, QsMessage, QsRequest, QsSender};
use crate::wire::reply::QueueCreated;
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Reply};

/// The generation that a new queue begins with (X3).
const FIRST_GENERATION: u32 = 1;

impl Service {
    /// Answers a request to our Queueing Service; `client` is who the connection belongs to.
    pub(super) async fn qs_request(
        &self,
        request: &ClientRequest,
        message: &QsMessage,
        client: &ClientIdentity,
    ) -> Result<Vec<u8>, Failure> {
        let now = UnixMillis::now();
        match (&message.sender, &message.request) {
            (QsSender::Client(chain), QsRequest::Create(body)) => self.create_queue(request, chain, body, client, now).await,
            (QsSender::Owner(queue_id), owned) => {
                self.owned_queue(request, *queue_id, client, now).await?;
                match owned {
                    QsRequest::Fetch(body) => self.fetch(*queue_id, body).await.map(Self::encode_reply),
                    QsRequest::Ack(body) => {
                        self.storage.write(AckEntries { queue_id: *queue_id, up_to: body.up_to }).await?;
                        Ok(Self::encode_reply(Reply::Done))
                    }
                    QsRequest::Delete => {
                        self.storage.write(DeleteQueue(*queue_id)).await?;
                        Ok(Self::encode_reply(Reply::Done))
                    }
                    // Answered on its own stream, see `subscription`; and generations are a later part.
                    QsRequest::Subscribe(_) | QsRequest::NewGeneration | QsRequest::RetireGeneration(_) => {
                        Err(ErrorCode::Unsupported.into())
                    }
                    QsRequest::Create(_) => Err(ErrorCode::NotAuthorized.into()),
                }
            }
            (QsSender::User(_), QsRequest::Delete) => Err(ErrorCode::Unsupported.into()),
            _ => Err(ErrorCode::NotAuthorized.into()),
        }
    }

    async fn create_queue(
        &self,
        request: &ClientRequest,
        chain: &List<Opaque>,
        body: &CreateQueueBody,
        client: &ClientIdentity,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        // QS-020: the signer is the client that the connection belongs to.
        let signer = self.own_client(chain, now)?;
        if signer.client != client.client {
            return Err(ErrorCode::NotAuthorized.into());
        }
        if !request.is_signed_by(&signer.public_key) {
            return Err(ErrorCode::BadSignature.into());
        }
        // QS-021: an Ed25519 key.
        if body.owner_key.len() != 32 {
            return Err(ErrorCode::Malformed.into());
        }
        let key = RequestKey::new(&signer.public_key, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        let queue_id = QueueId::random();
        let reply = Reply::QueueCreated(QueueCreated { queue_id, generation: FIRST_GENERATION });
        let response = Self::encode_reply(reply);
        let create = CreateQueue {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            queue_id,
            owner_key: body.owner_key.to_vec(),
            client: signer.client,
            generation: FIRST_GENERATION,
        };
        match self.storage.write(create).await? {
            None => Ok(response),
            Some(known) => Self::answer_known(known, now),
        }
    }

    /// QS-022: the queue is there, belongs to the client of the connection, and its owner key signed the request now.
    async fn owned_queue(
        &self,
        request: &ClientRequest,
        queue_id: QueueId,
        client: &ClientIdentity,
        now: UnixMillis,
    ) -> Result<Queue, Failure> {
        let queue = self.storage.queue(queue_id).await?.ok_or(ErrorCode::UnknownQueue)?;
        if queue.client != client.client {
            return Err(ErrorCode::UnknownQueue.into());
        }
        if !request.is_signed_by(&queue.owner_key) {
            return Err(ErrorCode::BadSignature.into());
        }
        Self::check_time(&request.content, now)?;
        Ok(queue)
    }

    async fn fetch(&self, queue_id: QueueId, body: &FetchEntries) -> Result<Reply, Failure> {
        let max = body.max.clamp(1, FETCH_ENTRIES_MAX);
        Ok(Reply::Entries(self.storage.entries(queue_id, body.from, max).await?.into()))
    }

    /// Serves a subscription until the client ends the stream or the node stops. An error is answered by the caller, on the
    /// same stream.
    pub(super) async fn subscription(
        self: &Arc<Self>,
        request: &ClientRequest,
        queue_id: QueueId,
        body: &FetchEntries,
        client: &ClientIdentity,
        send: &mut SendStream,
    ) -> Result<(), Failure> {
        self.owned_queue(request, queue_id, client, UnixMillis::now()).await?;
        let woken = self.waiters.subscribe(queue_id);
        let mut shutdown = self.shutdown.clone();
        let mut wanted = body.clone();
        loop {
            let mut arrival = std::pin::pin!(woken.notified());
            // Registered before looking, so that no entry is missed in between.
            arrival.as_mut().enable();
            let Reply::Entries(entries) = self.fetch(queue_id, &wanted).await? else { return Ok(()) };
            let Some(last) = entries.last() else {
                tokio::select! {
                    () = arrival => continue,
                    _ = send.stopped() => return Ok(()),
                    _ = shutdown.wait_for(|stop| *stop) => {
                        let _ = send.reset(CloseCode::ShuttingDown.number());
                        return Ok(());
                    }
                }
            };
            wanted.from = last.sequence + 1;
            // However slowly the client takes them: a stopping node does not wait for it.
            let push = Self::encode_reply(Reply::Entries(entries));
            let pushed = tokio::select! {
                pushed = write_frame(send, &push) => pushed.is_ok(),
                _ = shutdown.wait_for(|stop| *stop) => false,
            };
            if !pushed {
                let _ = send.reset(CloseCode::ShuttingDown.number());
                return Ok(());
            }
        }
    }

    /// R8: who of our own clients a chain proves.
    pub(super) fn own_client(&self, chain: &List<Opaque>, now: UnixMillis) -> Result<ClientIdentity, Failure> {
        let chain: Vec<Vec<u8>> = chain.iter().map(|certificate| certificate.to_vec()).collect();
        self.own_client_of(&chain, now)
    }

    /// As [`Service::own_client`], of certificates as TLS has them.
    pub(super) fn own_client_of(&self, chain: &[Vec<u8>], now: UnixMillis) -> Result<ClientIdentity, Failure> {
        let roots = self.directory.roots();
        let roots = roots.get(&self.domain).ok_or(ErrorCode::Internal)?;
        Ok(validate_client_chain(chain, roots, now).map_err(|_| ErrorCode::InvalidCredential)?)
    }

    /// A user of this domain out of a wire name.
    pub(super) fn own_user(&self, name: &[u8]) -> Result<UserUri, Failure> {
        let user = UserUri::from_bytes(name).map_err(|_| ErrorCode::UnknownUser)?;
        if *user.domain() == self.domain { Ok(user) } else { Err(ErrorCode::UnknownUser.into()) }
    }
}

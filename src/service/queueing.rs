//! Queueing Service requests of our own clients, and subscriptions; and what becomes of queues with time.

use std::sync::Arc;
use std::time::Duration;

use quinn::SendStream;

use super::{Failure, Service};
use crate::base::ids::QueueId;
use crate::base::limits::{AGED_ENTRIES_AT_ONCE_MAX, AGED_QUEUES_AT_ONCE_MAX, FETCH_ENTRIES_MAX, FORGET_AT_ONCE_MAX};
use crate::base::rule::on;
use crate::base::{Fault, UnixMillis};
use crate::identity::ClientIdentity;
use crate::identity::chain::validate_client_chain;
use crate::identity::revoked::key_hash;
use crate::qs::owner::{check_create, check_owner, check_retire, check_sender, check_user};
use crate::storage::answers::RequestKey;
use crate::storage::housekeeping::ForgetExpired;
use crate::storage::queues::{
    AckEntries, AgeEntries, ChangeGeneration, CreateQueue, Created, DeleteQueue, Generation, GenerationChanged,
};
use crate::transport::{CloseCode, Tenancy};
use crate::wire::qs::{CreateQueue as CreateQueueBody, FetchEntries, QsMessage, QsRequest, QsSender, UserOfQueue};
use crate::wire::reply::QueueCreated;
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection, Reply};

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
        check_sender(&message.sender, &message.request)?;
        match (&message.sender, &message.request) {
            (QsSender::Client(chain), QsRequest::Create(body)) => self.create_queue(request, chain, body, client, now).await,
            (QsSender::User(of), QsRequest::Delete) => self.delete_by_user(request, of, now).await,
            (QsSender::Owner(queue_id), owned) => self.owner_request(request, *queue_id, owned, client, now).await,
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
        let signer = self.own_client(chain, now)?;
        check_create(request, &signer, &client.client, body)?;
        self.count_request(&signer.public_key, now)?;
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
            client_key_hash: key_hash(&signer.public_key),
            client: signer.client,
            generation: FIRST_GENERATION,
            limits: self.limits.clone(),
            now,
        };
        match self.storage.write(create).await? {
            Created::Done => Ok(response),
            Created::Known(known) => Self::answer_known(known, now),
            Created::OverLimit => Err(ErrorCode::TooLarge.into()),
        }
    }

    /// A request that the owner key signs.
    async fn owner_request(
        &self,
        request: &ClientRequest,
        queue_id: QueueId,
        owned: &QsRequest,
        client: &ClientIdentity,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        match owned {
            QsRequest::Fetch(body) => {
                self.owned_queue(request, queue_id, client, now).await?;
                self.fetch(queue_id, body).await.map(Self::encode_reply)
            }
            QsRequest::Ack(body) => {
                self.owned_queue(request, queue_id, client, now).await?;
                self.storage.write(AckEntries { queue_id, up_to: body.up_to }).await?;
                Ok(Self::encode_reply(Reply::Done))
            }
            QsRequest::Delete | QsRequest::NewGeneration | QsRequest::RetireGeneration(_) => {
                self.owner_change(request, queue_id, owned, client, now).await
            }
            // Answered on its own stream, see `subscription`.
            QsRequest::Subscribe(_) => Err(ErrorCode::Unsupported.into()),
            QsRequest::Create(_) => Err(ErrorCode::NotAuthorized.into()),
        }
    }

    /// A change that the owner key signs, and whose answer is stored.
    async fn owner_change(
        &self,
        request: &ClientRequest,
        queue_id: QueueId,
        change: &QsRequest,
        client: &ClientIdentity,
        now: UnixMillis,
    ) -> Result<Vec<u8>, Failure> {
        let key_of = |owner_key: &[u8]| RequestKey::new(owner_key, request.content.request_id, request.content.digest());
        let Some(queue) = self.storage.queue(queue_id).await? else {
            // A repeat of the request that deleted it proves itself by the key that the queue had.
            let deleted = self.storage.deleted_queue(queue_id).await?;
            let owner = check_owner(request, deleted.as_ref(), &client.client)?;
            return self.stored_answer(&key_of(&owner.owner_key), now).await?.ok_or(ErrorCode::UnknownQueue.into());
        };
        check_owner(request, Some(&queue), &client.client)?;
        self.count_request(&queue.owner.owner_key, now)?;
        let key = key_of(&queue.owner.owner_key);
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        let (change, reply) = match change {
            QsRequest::NewGeneration => {
                // Nobody can begin so many; were it so, the last one stays.
                let generation = queue.generation.saturating_add(1);
                (Generation::Begin(generation), Reply::Generation(generation))
            }
            QsRequest::RetireGeneration(body) => {
                check_retire(queue.generation, body)?;
                (Generation::Retire(body.generation), Reply::Done)
            }
            _ => return self.delete_queue(key, queue_id, now).await,
        };
        let response = Self::encode_reply(reply);
        let change = ChangeGeneration {
            key,
            response: response.clone(),
            answer_expires_at: Self::answer_expiry(now),
            queue_id,
            seen: queue.generation,
            change,
        };
        match self.storage.write(change).await? {
            GenerationChanged::Done => Ok(response),
            GenerationChanged::Known(known) => Self::answer_known(known, now),
            // Two requests of the owner at once: whoever came second asks again.
            GenerationChanged::Conflict => Err(Fault::new("a queue changed under a request of its owner").into()),
        }
    }

    /// A deletion that the user key signs.
    async fn delete_by_user(&self, request: &ClientRequest, of: &UserOfQueue, now: UnixMillis) -> Result<Vec<u8>, Failure> {
        let user = self.signed_by_user(request, &of.certificates, now)?;
        self.count_request(&user.public_key, now)?;
        let key = RequestKey::new(&user.public_key, request.content.request_id, request.content.digest());
        if let Some(response) = self.stored_answer(&key, now).await? {
            return Ok(response);
        }
        Self::check_time(&request.content, now)?;
        self.check_user(&user).await?;
        let queue = self.storage.queue(of.queue_id).await?;
        check_user(queue.as_ref().map(AsRef::as_ref), &user)?;
        self.delete_queue(key, of.queue_id, now).await
    }

    async fn delete_queue(&self, key: RequestKey, queue_id: QueueId, now: UnixMillis) -> Result<Vec<u8>, Failure> {
        let response = Self::encode_reply(Reply::Done);
        let delete = DeleteQueue { key, response: response.clone(), answer_expires_at: Self::answer_expiry(now), queue_id };
        match self.storage.write(delete).await? {
            None => {
                // Whoever listens to it learns that it is gone.
                self.waiters.wake([queue_id]);
                Ok(response)
            }
            Some(known) => Self::answer_known(known, now),
        }
    }

    /// Whether the queue's owner signed the request, now (QS-022).
    async fn owned_queue(
        &self,
        request: &ClientRequest,
        queue_id: QueueId,
        client: &ClientIdentity,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let queue = self.storage.queue(queue_id).await?;
        let queue = queue.as_ref();
        let owner = &check_owner(request, queue, &client.client)?.owner;
        self.count_request(&owner.owner_key, now)?;
        Ok(Self::check_time(&request.content, now)?)
    }

    /// Counts a request that was verified with `key`.
    pub(super) fn count_request(&self, key: &[u8], now: UnixMillis) -> Result<(), Rejection> {
        // QS-027: a client asks about queues, KeyPackages and its account so often and no more.
        if on("QS-027") { self.rates.count_client(key, now) } else { Ok(()) }
    }

    async fn fetch(&self, queue_id: QueueId, body: &FetchEntries) -> Result<Reply, Failure> {
        let max = body.max.clamp(1, FETCH_ENTRIES_MAX);
        Ok(Reply::Entries(self.storage.entries(queue_id, body.from, max).await?.into()))
    }

    /// Whether `client` may subscribe to a queue with this request.
    pub(super) async fn check_subscription(
        &self,
        request: &ClientRequest,
        queue_id: QueueId,
        client: &ClientIdentity,
    ) -> Result<(), Failure> {
        self.check_client(client)?;
        self.owned_queue(request, queue_id, client, UnixMillis::now()).await
    }

    /// Serves a subscription that was checked, until the client ends the stream or does not take what it gets, the node stops, the
    /// queue is gone or the client is revoked. An error is answered by the caller, on the same stream.
    pub(super) async fn subscription(
        self: &Arc<Self>,
        queue_id: QueueId,
        mut wanted: FetchEntries,
        client: &ClientIdentity,
        send: &mut SendStream,
        tenancy: &Tenancy,
    ) -> Result<(), Failure> {
        let woken = self.waiters.subscribe(queue_id);
        let mut shutdown = self.shutdown.clone();
        loop {
            let mut arrival = std::pin::pin!(woken.notified());
            // Registered before looking, so that no entry is missed in between.
            arrival.as_mut().enable();
            self.check_client(client)?;
            let Reply::Entries(entries) = self.fetch(queue_id, &wanted).await? else { return Ok(()) };
            let Some(last) = entries.last() else {
                if self.storage.queue(queue_id).await?.is_none() {
                    return Err(ErrorCode::UnknownQueue.into());
                }
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
            let ended = tokio::select! {
                pushed = tenancy.send_push(send, &push) => pushed.err().map(|error| error.code()),
                _ = shutdown.wait_for(|stop| *stop) => Some(CloseCode::ShuttingDown),
            };
            if let Some(code) = ended {
                let _ = send.reset(code.number());
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
        let client = validate_client_chain(chain, roots, now).map_err(|_| ErrorCode::InvalidCredential)?;
        self.check_client(&client)?;
        Ok(client)
    }

    /// What is done with time: entries that are too old become markers (X4), and what has expired is forgotten.
    pub async fn keep_queues(&self, now: UnixMillis) -> Result<(), Fault> {
        let before = now.minus(Duration::from_secs(self.limits.queue_entry_age_seconds_max));
        let mut after = None;
        loop {
            let aged = self.storage.aged_queues(before, after, AGED_QUEUES_AT_ONCE_MAX).await?;
            let Some(last) = aged.last() else { break };
            after = Some(*last);
            for queue_id in aged {
                let age = || AgeEntries { queue_id, before, limit: AGED_ENTRIES_AT_ONCE_MAX };
                while self.storage.write(age()).await? == AGED_ENTRIES_AT_ONCE_MAX {}
            }
        }
        let forget = || ForgetExpired { now, limit: FORGET_AT_ONCE_MAX };
        while self.storage.write(forget()).await? == FORGET_AT_ONCE_MAX {}
        Ok(())
    }
}

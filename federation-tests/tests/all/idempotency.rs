//! A request may be sent again, byte for byte, at any later time: the answer is the same and nothing happens twice.

use federation_tests::people::{Person, Room, ask, enrol_request, key_of_seed, stranger};
use federation_tests::raw::Raw;
use federation_tests::stage::Stage;
use federation_tests::synth::{CONTENT_TYPE_APPLICATION, Change};
use mimi_node::base::limits::REQUEST_TIME_WINDOW;
use mimi_node::base::{Fault, UnixMillis};
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest, PublishKeyPackages};
use mimi_node::wire::qs::{CreateQueue, QsMessage, QsRequest, QsSender};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, Opaque, Reply, Response, Service, decode, encode};
use rand::Rng as _;

/// A request that was accepted: who sent it, its octets and its answer's.
struct Sent {
    what: &'static str,
    /// 0 alice, 1 bob, 2 a stranger.
    by: usize,
    request: ClientRequest,
    answer: Vec<u8>,
}

/// Two users, a group of both at the first one's hub, and whoever has no certificate.
struct Scene {
    stage: Stage,
    alice: Person,
    bob: Person,
    stranger: Raw,
    pin: [u8; 32],
}

impl Scene {
    async fn new(seed: u64) -> Result<Self, Fault> {
        let mut stage = Stage::open(2, seed).await?;
        let alice = stage.person(0, "alice").await?;
        let bob = stage.person(1, "bob").await?;
        let invitation = stage.world.invite(0, "unused").await?;
        let stranger = stranger(&stage.world, 0, &invitation).await?;
        Ok(Self { stage, alice, bob, stranger, pin: invitation.tls_ca_spki_hash })
    }

    async fn octets(&self, by: usize, request: &ClientRequest) -> Result<Vec<u8>, Fault> {
        let raw = [&self.alice.home, &self.bob.home, &self.stranger][by];
        raw.exchange(&encode(request)).await.map_err(|ended| Fault::new(format!("no answer: {ended:?}")))
    }

    async fn restart(&mut self) -> Result<(), Fault> {
        for index in 0..2 {
            self.stage.restart(index).await?;
        }
        self.alice.reconnect(&self.stage.world, 0, self.pin).await?;
        self.bob.reconnect(&self.stage.world, 1, self.pin).await?;
        let invitation = self.stage.world.invite(0, "unused").await?;
        self.stranger = stranger(&self.stage.world, 0, &invitation).await?;
        Ok(())
    }

    /// Sends a request that must be accepted.
    async fn send(&self, what: &'static str, by: usize, request: ClientRequest) -> Result<Sent, Fault> {
        let answer = self.octets(by, &request).await?;
        match decode::<Response>(&answer).expect("a response").into_result() {
            Ok(_) => Ok(Sent { what, by, request, answer }),
            Err(rejection) => Err(Fault::new(format!("{what} was refused: {rejection}"))),
        }
    }

    /// One accepted request of every kind that changes something.
    async fn one_of_each(&mut self) -> Result<(Room, Vec<Sent>), Fault> {
        let mut rng = self.stage.rng.clone();
        let a = self.stage.domain(0);
        let mut sent = Vec::new();
        let invitation = self.stage.world.invite(0, "zoe").await?;
        let key = key_of_seed(&rng.random())?;
        sent.push(self.send("enrol", 2, enrol_request(&invitation, &key)?).await?);
        let create = QsRequest::Create(CreateQueue { owner_key: vec![7; 32].into() });
        let sender = QsSender::Client(self.alice.device.certificates());
        let service = Service::Qs(QsMessage { sender, request: create });
        let create = Content::new(&a, mimi_node::base::ids::RequestId::random(), UnixMillis::now(), service);
        sent.push(self.send("qs.create", 0, create.sign(&self.alice.device.key)).await?);
        let packages = [self.alice.key_package(&mut rng)?, self.alice.key_package(&mut rng)?];
        let key_packages = packages.iter().map(|package| Opaque::from(package.message())).collect();
        let publish = KeysRequest::Publish(PublishKeyPackages { key_packages, last_resort: None });
        sent.push(self.send("keys.publish", 0, self.alice.keys_request(&a, publish)).await?);
        let claim = KeysRequest::Claim(ClaimKeyPackages { user: self.alice.user.to_bytes().into(), ciphersuite: 1 });
        sent.push(self.send("keys.claim", 1, self.bob.keys_request(&a, claim)).await?);

        let (mut room, create) = Room::forge(&self.alice, &mut rng)?;
        sent.push(self.send("create_group", 0, create).await?);
        let forged = room.group.add(0, vec![self.bob.key_package(&mut rng)?]).expect("alice is a member");
        let add = room.request(0, &self.alice.device.key, room.add_body(&forged));
        sent.push(self.send("add_users", 0, add).await?);
        let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
        let message = room.request(1, &self.bob.device.key, room.message_body(message));
        sent.push(self.send("send_message", 1, message).await?);
        let forged = room.group.update(1).expect("bob is a member");
        let update = room.request(1, &self.bob.device.key, room.update_body(&forged));
        sent.push(self.send("update_client", 1, update).await?);
        self.stage.rng = rng;
        Ok((room, sent))
    }
}

// Shows: a repeat of each accepted request gets the stored answer, octet for octet, and changes nothing, also after the nodes were
// restarted, and also when the retry was made at another time and signed anew. Failure: another octet in an answer (such as
// wrong_epoch for a commit, or another queue), or any change in any table of either node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_gets_the_stored_answer_and_changes_nothing() -> Result<(), Fault> {
    let mut scene = Scene::new(71).await?;
    let (mut room, sent) = scene.one_of_each().await?;
    for round in ["at once", "after a restart", "after the group went on"] {
        let before = scene.stage.contents().await?;
        for one in &sent {
            let answer = scene.octets(one.by, &one.request).await?;
            assert_eq!(answer, one.answer, "{} {round}: {:?}", one.what, decode::<Response>(&answer));
            scene.stage.expect_unchanged(&before, &format!("{} {round}", one.what)).await?;
        }
        match round {
            "at once" => scene.restart().await?,
            _ => drop(room.update((&scene.alice, 0)).await?),
        }
    }
    Ok(())
}

// Shows: two sendings that are in flight together count as one. Failure: two different answers, or anything twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_at_the_same_time_count_once() -> Result<(), Fault> {
    let mut scene = Scene::new(72).await?;
    let mut rng = scene.stage.rng.clone();
    let (mut room, create) = Room::forge(&scene.alice, &mut rng)?;
    let invitation = scene.stage.world.invite(0, "zoe").await?;
    let enrol = enrol_request(&invitation, &key_of_seed(&rng.random())?)?;
    let add = {
        let forged = room.group.add(0, vec![scene.bob.key_package(&mut rng)?]).expect("alice is a member");
        room.request(0, &scene.alice.device.key, room.add_body(&forged))
    };
    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let message = room.request(1, &scene.bob.device.key, room.message_body(message));
    let update = room.group.update(1).expect("bob is a member");
    let update = room.request(1, &scene.bob.device.key, room.update_body(&update));
    for (what, by, request) in
        [("enrol", 2, enrol), ("create", 0, create), ("add", 0, add), ("message", 1, message), ("update", 1, update)]
    {
        let many = (0..12).map(|_| scene.octets(by, &request));
        let mut answers = Vec::new();
        let mut tasks = Vec::from_iter(many.map(Box::pin));
        // All are polled before the first is answered.
        std::future::poll_fn(|context| {
            tasks.retain_mut(|task| match task.as_mut().poll(context) {
                std::task::Poll::Ready(answer) => {
                    answers.push(answer);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        assert!(decode::<Response>(&answers[0]).expect("a response").into_result().is_ok(), "{what}");
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{what}: {answers:?}");
    }
    let contents = scene.stage.contents().await?;
    // The two queues' creations, and create, add, message, update, enrol, and alice's own enrolment.
    assert_eq!(contents[0].rows("answers"), 7);
    assert_eq!((contents[0].rows("groups"), contents[0].rows("group_log")), (1, 2));
    // Bob got his Welcome; alice the message and the update.
    assert_eq!((scene.alice.entries().await?.len(), scene.bob.entries().await?.len()), (2, 1));
    Ok(())
}

// Shows: a request id that was used is not used for something else, and a request that is too old or too new is not accepted at all;
// both are told the server's time. Failure: another code, a missing or wrong time, or any change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_id_and_an_old_request_are_refused_with_the_time() -> Result<(), Fault> {
    let mut scene = Scene::new(73).await?;
    let (mut room, sent) = scene.one_of_each().await?;
    let (alice, bob) = (scene.alice.device.key.clone(), scene.bob.device.key.clone());
    let a = scene.stage.domain(0);
    let ids = |what: &str| sent.iter().find(|one| one.what == what).map(|one| one.request.content.request_id).expect("was sent");
    let mut other = room.group.clone();
    let message = room.message_body(other.private_message(CONTENT_TYPE_APPLICATION));
    let update = room.update_body(&room.try_commit(1, Change::default()).expect("bob is a member"));
    let invalid = room.message_body(vec![1, 2, 3]);
    let (_, create) = Room::forge(&scene.alice, &mut scene.stage.rng)?;
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: scene.alice.user.to_bytes().into(), ciphersuite: 1 });
    let reused = [
        ("message for update", 1, ids("update_client"), room.request(1, &bob, message.clone()), &bob),
        ("update for message", 1, ids("send_message"), room.request(1, &bob, update), &bob),
        ("an invalid message", 1, ids("send_message"), room.request(1, &bob, invalid), &bob),
        ("message for claim", 1, ids("keys.claim"), room.request(1, &bob, message.clone()), &bob),
        ("claim for message", 1, ids("send_message"), scene.bob.keys_request(&a, claim), &bob),
        ("create for create", 0, ids("create_group"), create, &alice),
        ("count for publish", 0, ids("keys.publish"), scene.alice.keys_request(&a, KeysRequest::Count), &alice),
    ];
    let stale = |answer: &[u8], what: &str| {
        let rejection = decode::<Response>(answer).expect("a response").into_result().expect_err(what);
        assert_eq!(rejection.code, ErrorCode::ReplayedOrStale, "{what}");
        let told = UnixMillis(rejection.as_replayed_or_stale().expect("the server's time").server_time_ms);
        assert!(told.distance(UnixMillis::now()).as_secs() < 30, "{what}: {told:?}");
    };
    let before = scene.stage.contents().await?;
    for (what, by, id, request, key) in reused {
        let request = Content { request_id: id, ..request.content }.sign(key);
        stale(&scene.octets(by, &request).await?, what);
        scene.stage.expect_unchanged(&before, what).await?;
    }

    // Another request of the same id by someone else is no repeat.
    let request = room.request(0, &alice, message.clone());
    let request = Content { request_id: ids("send_message"), ..request.content }.sign(&alice);
    scene.send("alice's own", 0, request).await?;

    let window = u64::try_from(REQUEST_TIME_WINDOW.as_millis()).expect("five minutes");
    let now = UnixMillis::now().0;
    let before = scene.stage.contents().await?;
    for issued_at_ms in [0, now - window - 5_000, now + window + 60_000, u64::MAX] {
        let old = |content: Content, key| Content { issued_at_ms, ..content }.sign(key);
        let commit = room.update_body(&room.try_commit(1, Change::default()).expect("bob is a member"));
        let (_, create) = Room::forge(&scene.alice, &mut scene.stage.rng)?;
        let count = scene.alice.keys_request(&a, KeysRequest::Count);
        let create_queue = sent.iter().find(|one| one.what == "qs.create").expect("was sent").request.content.clone();
        let create_queue = Content { request_id: mimi_node::base::ids::RequestId::random(), ..create_queue };
        for (what, by, request) in [
            ("message", 1, old(room.request(1, &bob, message.clone()).content, &bob)),
            ("commit", 1, old(room.request(1, &bob, commit).content, &bob)),
            ("create", 0, old(create.content, &alice)),
            ("count", 0, old(count.content, &alice)),
            ("queue", 0, old(create_queue, &alice)),
        ] {
            stale(&scene.octets(by, &request).await?, what);
        }
    }
    scene.stage.expect_unchanged(&before, "too old or too new").await?;
    // The time is looked at only for what is not known: a repeat made much later is one.
    for one in &sent {
        let key = match (one.what, one.by) {
            ("enrol", _) => continue,
            (_, 0) => &alice,
            _ => &bob,
        };
        let later = Content { issued_at_ms: now + 10 * window, ..one.request.content.clone() }.sign(key);
        assert_eq!(scene.octets(one.by, &later).await?, one.answer, "{} much later", one.what);
    }
    scene.stage.expect_unchanged(&before, "repeats much later").await?;
    room.update((&scene.alice, 0)).await.map(drop)
}

// Shows: a repeat of the commit that replaced its sender's key gets its receipt, though it is signed with the key that is gone; so
// does one whose sender has been removed since. Failure: any other answer, or any change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_answered_though_its_key_is_gone() -> Result<(), Fault> {
    let mut scene = Scene::new(74).await?;
    let mut rng = scene.stage.rng.clone();
    let mut room = Room::create(&scene.alice, &mut rng).await?;
    room.add((&scene.alice, 0), &[&scene.bob], &mut rng).await?;
    let renewed = scene.bob.device("phone", rng.random())?;
    let change = Change { identity: Some(renewed.identity()), ..Change::default() };
    let forged = room.group.commit(1, change).expect("bob is a member");
    let update = room.request(1, &scene.bob.device.key, room.update_body(&forged));
    let update = scene.send("update_client", 1, update).await?;
    let message = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let message = room.request(1, &renewed.key, room.message_body(message));
    let message = scene.send("send_message", 1, message).await?;
    for round in ["at once", "after a restart"] {
        let before = scene.stage.contents().await?;
        for one in [&update, &message] {
            assert_eq!(scene.octets(1, &one.request).await?, one.answer, "{} {round}", one.what);
        }
        scene.stage.expect_unchanged(&before, round).await?;
        scene.restart().await?;
    }
    room.remove((&scene.alice, 0), &[1]).await?;
    let before = scene.stage.contents().await?;
    for one in [&update, &message] {
        let answer = scene.octets(1, &one.request).await?;
        assert_eq!(answer, one.answer, "{} after the removal: {:?}", one.what, decode::<Response>(&answer));
    }
    scene.stage.expect_unchanged(&before, "after the removal").await?;
    assert!(matches!(
        ask(
            &scene.alice.home,
            &room.request(0, &scene.alice.device.key, room.message_body(room.group.clone().private_message(1)))
        )
        .await?,
        Ok(Reply::MessageAccepted(_))
    ));
    Ok(())
}

//! Lanes: what a domain that is down, slow, or takes not everything costs, and whom.

use std::path::Path;
use std::time::Duration;

use federation_tests::receiver::{Receiver, Say, TakenFrame};
use federation_tests::world::World;
use mimi_node::base::crypto::sha256;
use mimi_node::base::limits::Limits;
use mimi_node::base::{Context as _, Domain, Fault, GroupUri, UnixMillis};
use mimi_node::client::{Client, Event};
use mimi_node::storage::Storage;
use mimi_node::storage::dead_letters::{DeadLetter, DeadReason};
use mimi_node::wire::qs::Delivery;
use mimi_node::wire::{ErrorCode, decode, encode};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::time::Instant;

use crate::gathering::{Gathering, Listening, TIMEOUT};
use crate::process::PROGRAM;

fn b() -> Domain {
    "b.test".parse().expect("a domain")
}

/// Waits until `done`; looks often.
async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let deadline = Instant::now() + TIMEOUT;
    while !done().await? {
        if Instant::now() > deadline {
            return Err(Fault::new(format!("{what}: this did not happen")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What waits on the hub's disk for b.test in one group, in order.
async fn waiting(storage: &Storage, group: &GroupUri) -> Result<Vec<Delivery>, Fault> {
    let frames = storage.waiting_frames(&b(), &group.to_string(), 1, 10_000, usize::MAX).await?;
    frames.iter().map(|frame| decode(&frame.delivery).context("not a delivery")).collect()
}

/// What the peer took of a group: resets left out, and how many these are.
fn taken_of(taken: &[TakenFrame], group: &GroupUri) -> (Vec<Delivery>, usize) {
    let of_group = taken.iter().filter(|frame| frame.group == group.to_string());
    let (resets, messages): (Vec<_>, Vec<_>) =
        of_group.map(|frame| frame.delivery.clone()).partition(|delivery| *delivery == Delivery::Reset);
    (messages, resets.len())
}

/// A hub with alice, a peer that bob was a user of, who is gone, and a third domain with carol; a group of all three and one of
/// alice and bob.
struct Town {
    gathering: Gathering,
    alice: Client,
    carol: Listening,
    all: GroupUri,
    two: GroupUri,
}

impl Town {
    async fn start() -> Result<Self, Fault> {
        let mut gathering = Gathering::start(3, &Limits::default()).await?;
        let alice = gathering.enrol(0, "alice").await?;
        let (bob, carol) = (gathering.enrol(1, "bob").await?, gathering.enrol(2, "carol").await?);
        let all = gathering.group(&alice, &[&bob, &carol]).await?;
        let two = gathering.group(&alice, &[&bob]).await?;
        let (bob, carol) = (Listening::new(&bob), Listening::new(&carol));
        for group in [&all, &two] {
            bob.sees(group, &alice.members(group).await.context("no members")?.1.iter().collect::<Vec<_>>()).await?;
        }
        let hub = gathering.node(0).service().storage();
        until("everything so far is delivered", async || Ok(hub.domains_with_frames().await?.is_empty())).await?;
        drop(bob);
        gathering.down(1).await?;
        Ok(Self { gathering, alice, carol, all, two })
    }

    fn hub(&self) -> &Storage {
        self.gathering.node(0).service().storage()
    }

    async fn says(&self, group: &GroupUri, messages: std::ops::Range<usize>) -> Result<(), Fault> {
        for number in messages {
            self.alice.send(group, &format!("message {number}")).await.context("cannot send")?;
        }
        Ok(())
    }

    /// Waits until `done` says so of what the peer took. The hub is told again and again that the peer may be up.
    async fn until_taken(
        &self,
        what: &str,
        receiver: &Receiver,
        mut done: impl FnMut(&[TakenFrame]) -> bool,
    ) -> Result<(), Fault> {
        until(what, async || {
            self.gathering.node(0).service().peers().wake(&b());
            Ok(done(&receiver.taken()))
        })
        .await
    }
}

// Shows: of a lane whose peer refuses one message for good, exactly that message is lost: it is found among those sent with it,
// told as a dead letter with the reason, and what follows arrives in order behind a reset. Another lane to the same peer, another
// domain and the acceptance of messages notice nothing.
// Fails if: another frame is lost, doubled or out of order; the other lane sees a reset; the loss is not told.
// Is no failure: how many requests it takes.
// covers X8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_frame_costs_itself_and_nothing_else() -> Result<(), Fault> {
    let town = Town::start().await?;
    town.says(&town.all, 0..40).await?;
    town.says(&town.two, 0..10).await?;
    let (of_all, of_two) = (waiting(town.hub(), &town.all).await?, waiting(town.hub(), &town.two).await?);
    assert_eq!((of_all.len(), of_two.len()), (40, 10));
    let poison = of_all[13].clone();
    let judged = poison.clone();
    let receiver = Receiver::start(&town.gathering.world, 1, move |batch| {
        let poisoned = batch.frames.iter().any(|frame| frame.delivery == judged);
        if poisoned { Say::Refuse(ErrorCode::TooLarge.into()) } else { Say::Take }
    })?;
    let wanted: Vec<Delivery> = of_all.iter().filter(|delivery| **delivery != poison).cloned().collect();
    town.until_taken("all but the poisoned message are taken", &receiver, |taken| {
        taken_of(taken, &town.all).0.len() >= wanted.len() && taken_of(taken, &town.two).0.len() >= of_two.len()
    })
    .await?;
    town.says(&town.all, 40..41).await?;
    town.carol.reads("message 40").await?;
    town.until_taken("the lane goes on", &receiver, |taken| taken_of(taken, &town.all).0.len() > wanted.len()).await?;
    until("nothing waits", async || Ok(town.hub().domains_with_frames().await?.is_empty())).await?;

    let taken = receiver.taken();
    let (of_all_taken, resets) = taken_of(&taken, &town.all);
    assert!(of_all_taken[..wanted.len()] == wanted[..], "in order, none twice, none left out");
    assert_eq!((of_all_taken.len(), resets), (wanted.len() + 1, 1));
    assert!(taken_of(&taken, &town.two) == (of_two, 0), "the other lane");
    let reset = taken.iter().find(|frame| frame.delivery == Delivery::Reset).expect("a reset");
    assert_eq!((reset.lane_sequence, reset.recipients), (1, 1));
    let letters = town.hub().dead_letters(Some(&b()), 10).await?;
    let [DeadLetter { group_id, frames: 1, recipients: 1, reason: DeadReason::Refused, digest, detail, .. }] = &letters[..]
    else {
        panic!("{letters:?}")
    };
    assert_eq!((group_id, digest), (&town.all.to_string(), &Some(sha256(&encode(&poison)))));
    assert!(detail.contains("too_large"), "{detail}");
    drop(receiver);
    town.gathering.stop().await
}

// Shows: while a peer does not answer for one lane at all, another lane to it, another domain and the acceptance of messages go
// on; when it answers again, that lane arrives in order, each frame once. What the lane loses by waiting is nothing.
// Fails if: anything waits for the stuck lane, a frame is lost, doubled or out of order, or a lane begins anew.
// Is no failure: that the other lane waits for one request's time-out, which tells the lanes of that request apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_stuck_delays_no_other() -> Result<(), Fault> {
    let town = Town::start().await?;
    town.says(&town.all, 0..10).await?;
    town.says(&town.two, 0..10).await?;
    let stuck = town.all.to_bytes();
    let receiver =
        Receiver::start(
            &town.gathering.world,
            1,
            move |batch| {
                if batch.group_id[..] == stuck[..] { Say::Nothing } else { Say::Take }
            },
        )?;
    town.until_taken("the other lane is taken", &receiver, |taken| taken_of(taken, &town.two).0.len() >= 10).await?;
    for round in 1..=3 {
        town.says(&town.two, 10 * round..10 * round + 10).await?;
        town.says(&town.all, 10 * round..10 * round + 1).await?;
        town.carol.reads(&format!("message {}", 10 * round)).await?;
        let wanted = 10 * round + 10;
        town.until_taken("the other lane goes on", &receiver, |taken| taken_of(taken, &town.two).0.len() >= wanted).await?;
    }
    assert!(taken_of(&receiver.taken(), &town.all).0.is_empty(), "it was never answered for");
    let (of_all, accepted) = (waiting(town.hub(), &town.all).await?, 13);
    assert_eq!(of_all.len(), accepted);
    receiver.release();
    town.until_taken("the stuck lane is taken", &receiver, |taken| taken_of(taken, &town.all).0.len() >= accepted).await?;
    until("nothing waits", async || Ok(town.hub().domains_with_frames().await?.is_empty())).await?;
    assert!(taken_of(&receiver.taken(), &town.all) == (of_all, 0), "in order, none twice, none left out");
    assert_eq!(taken_of(&receiver.taken(), &town.two).1, 0);
    assert!(town.hub().dead_letters(None, 10).await?.is_empty());
    drop(receiver);
    town.gathering.stop().await
}

// Shows: what a peer refuses for now, it is asked again, and nothing is lost; a wait that it asks for is kept.
// Fails if: a frame is lost or a lane begins anew because of a refusal that passes, or the peer is asked again too soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_passes_costs_nothing_but_time() -> Result<(), Fault> {
    let town = Town::start().await?;
    town.says(&town.two, 0..10).await?;
    let wanted = waiting(town.hub(), &town.two).await?;
    const WAIT: Duration = Duration::from_secs(3);
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let times = asked.clone();
    let receiver = Receiver::start(&town.gathering.world, 1, move |_| {
        let mut times = times.lock().expect("nobody panicked");
        times.push(std::time::Instant::now());
        match times.len() {
            1 => Say::Refuse(ErrorCode::Internal.into()),
            2 => Say::Refuse(mimi_node::wire::Rejection::rate_limited(WAIT)),
            _ => Say::Take,
        }
    })?;
    town.until_taken("all is taken", &receiver, |taken| taken_of(taken, &town.two).0.len() >= 10).await?;
    assert!(taken_of(&receiver.taken(), &town.two) == (wanted, 0), "in order, none twice, none left out");
    let asked = asked.lock().expect("nobody panicked").clone();
    assert!(asked[2] - asked[1] >= WAIT, "{:?} after it was told to wait for {WAIT:?}", asked[2] - asked[1]);
    assert!(town.hub().dead_letters(None, 10).await?.is_empty());
    drop(receiver);
    town.gathering.stop().await
}

// Shows: a peer that takes not even a reset loses one message of a lane, not one after the other; and takes up where it was
// when it changes its mind.
// Fails if: more than one frame is lost however often it refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_wants_nothing_of_a_group_does_not_empty_its_lane() -> Result<(), Fault> {
    let town = Town::start().await?;
    town.says(&town.two, 0..10).await?;
    let wanted = waiting(town.hub(), &town.two).await?.split_off(1);
    let relents = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (asked, willing) = (std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)), relents.clone());
    let count = asked.clone();
    use std::sync::atomic::Ordering::SeqCst;
    let receiver = Receiver::start(&town.gathering.world, 1, move |batch| {
        if willing.load(SeqCst) {
            return Say::Take;
        }
        count.fetch_add(usize::from(batch.frames[0].delivery == Delivery::Reset), SeqCst);
        Say::Refuse(ErrorCode::NotAuthorized.into())
    })?;
    town.until_taken("the reset is refused, and again", &receiver, |_| asked.load(SeqCst) >= 2).await?;
    let lane = town.hub().lane_status(&b(), &town.two.to_string()).await?.expect("it waits");
    assert!(lane.refused_since.is_some(), "{lane:?}");
    assert_eq!(waiting(town.hub(), &town.two).await?[1..], wanted[..]);
    relents.store(true, SeqCst);
    town.until_taken("all is taken", &receiver, |taken| taken_of(taken, &town.two).0.len() >= 9).await?;
    assert!(taken_of(&receiver.taken(), &town.two) == (wanted, 1), "in order, none twice, none left out, behind a reset");
    assert_eq!(town.hub().dead_letters(None, 10).await?.len(), 1);
    drop(receiver);
    town.gathering.stop().await
}

/// Changes the database of a domain whose node does not run.
async fn change_database(world: &World, index: usize, statements: &[&'static str]) -> Result<u64, Fault> {
    let path = world.config(index)?.data.join("node.sqlite");
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.context("cannot open")?;
    let mut rows = 0;
    for statement in statements {
        rows += sqlx::query(*statement).execute(&mut connection).await.context("cannot change")?.rows_affected();
    }
    Ok(rows)
}

/// That a client was told of lost messages and is back in the group by itself, and that another one has seen it come back:
/// whatever that one sends from then on is for both.
async fn resynced(listening: &Listening, other: &Listening, group: &GroupUri) -> Result<(), Fault> {
    listening
        .until("being told and resyncing", async |this: &Listening| {
            let events = this.events();
            let told = events.iter().position(|event| matches!(event, Event::MessagesLost { .. }));
            told.is_some_and(|told| events[told..].iter().any(|event| matches!(event, Event::Resynced { .. })))
        })
        .await?;
    let (epoch, _) = listening.client.members(group).await.context("no members")?;
    let sees = async |this: &Listening| this.client.members(group).await.is_ok_and(|(its, _)| its >= epoch);
    other.until("seeing somebody come back", sees).await
}

// Shows: when a peer has lost how far a lane had come (as from a backup), or the hub has, the lane begins anew by itself: the
// members there are told that messages may be lost, resync, and all converse again. The dead letter says which of the two it was.
// Fails if: the lane stays stuck, nobody is told, or somebody does not read what comes after.
// covers X8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_ends_disagree_begins_anew() -> Result<(), Fault> {
    let peer_forgot = ["UPDATE lanes_in SET next_sequence = 2", "DELETE FROM lane_answers WHERE lane_sequence >= 2"];
    let hub_forgot = ["DELETE FROM lanes WHERE domain = 'b.test'"];
    for (index, forgets, reason) in [(1, &peer_forgot[..], DeadReason::Gap), (0, &hub_forgot[..], DeadReason::Conflict)] {
        let mut gathering = Gathering::start(2, &Limits::default()).await?;
        let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
        let group = gathering.group(&alice, &[&bob]).await?;
        let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
        bob.sees(&group, &[alice.client.uri(), bob.client.uri()]).await?;
        for number in 0..5 {
            alice.says(&group, &format!("before {number}"), &[&bob]).await?;
        }
        let hub = gathering.node(0).service().storage();
        until("everything is delivered", async || Ok(hub.domains_with_frames().await?.is_empty())).await?;
        gathering.down(index).await?;
        assert!(change_database(&gathering.world, index, forgets).await? > 0, "there was something to forget");
        gathering.up(index).await?;
        alice.client.send(&group, "what now?").await.context("cannot send")?;
        resynced(&bob, &alice, &group).await?;
        alice.says(&group, "after", &[&bob]).await?;
        bob.says(&group, "as well", &[&alice]).await?;
        let letters = gathering.node(0).service().storage().dead_letters(None, 10).await?;
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.reason, &letter.domain, letter.recipients), (reason, &b(), 1), "{letter:?}");
        // What the peer had and forgot is counted, and the hub does not have it any more.
        assert_eq!((letter.frames > 0, letter.octets), (reason == DeadReason::Gap, 0), "{letter:?}");
        gathering.stop().await?;
    }
    Ok(())
}

// Shows: lanes to a domain that is down stay within their bounds, whichever it is; accepting goes on; and when the domain is back,
// its members are told, resync, and all converse again.
// Fails if: more waits than is allowed, somebody is not told, or a lane begins anew twice for the same excess.
// covers X8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_stay_within_their_bounds() -> Result<(), Fault> {
    let few = Limits { lane_frames_max: 20, ..Limits::default() };
    let small = Limits { lane_bytes_max: 20_000, ..Limits::default() };
    for (limits, reason) in [(few, DeadReason::TooMany), (small, DeadReason::TooLarge), (Limits::default(), DeadReason::TooOld)] {
        let mut gathering = Gathering::start(2, &limits).await?;
        let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
        let group = gathering.group(&alice, &[&bob]).await?;
        let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
        bob.sees(&group, &[alice.client.uri(), bob.client.uri()]).await?;
        let service = gathering.node(0).service().clone();
        until("everything is delivered", async || Ok(service.storage().domains_with_frames().await?.is_empty())).await?;
        gathering.down(1).await?;
        for number in 0..60 {
            alice.client.send(&group, &format!("{number} {}", "x".repeat(500))).await.context("cannot send")?;
        }
        let now = UnixMillis::now();
        let later = now.plus(Duration::from_secs(limits.lane_age_seconds_max + 60));
        let at = if reason == DeadReason::TooOld { later } else { now };
        // Its worker does it, at the next look of the housekeeping if not at this one.
        until("the lane is over, and ends", async || {
            service.look_after_lanes(at).await?;
            Ok(!service.storage().dead_letters(None, 1).await?.is_empty())
        })
        .await?;
        let lane = service.storage().lane_status(&b(), &group.to_string()).await?.context("a reset waits")?;
        assert!(lane.frames <= limits.lane_frames_max && lane.octets <= limits.lane_bytes_max, "{lane:?}");
        let letters = service.storage().dead_letters(None, 10).await?;
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.reason, letter.frames + lane.frames), (reason, 61), "what is lost, what is left, and the reset");
        until("what died is swept away", async || {
            service.look_after_lanes(at).await?;
            Ok(service.storage().unswept_lane().await?.is_none())
        })
        .await?;
        gathering.up(1).await?;
        resynced(&bob, &alice, &group).await?;
        alice.says(&group, "after", &[&bob]).await?;
        bob.says(&group, "as well", &[&alice]).await?;
        assert_eq!(service.storage().dead_letters(None, 10).await?.len(), 1);
        gathering.stop().await?;
    }
    Ok(())
}

// Shows: a domain that takes nothing of a group for too long loses its leaves there: the hub asks for it, a member commits it, and
// the group goes on without them. The lane does not make this happen a day too early.
// Fails if: the leaf stays, or goes before its time.
// covers S12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_takes_nothing_for_too_long_loses_its_leaves() -> Result<(), Fault> {
    let mut town = Town::start().await?;
    let bob = "mimi://b.test/d/bob/phone".parse().expect("a client");
    town.says(&town.all, 0..3).await?;
    let alice = Listening::new(&town.alice);
    let members = [town.alice.uri().clone(), bob, town.carol.client.uri().clone()];
    let service = town.gathering.node(0).service().clone();
    let after = |days: u64| UnixMillis::now().plus(Duration::from_secs(days * 86_400));
    service.look_after_groups(after(29)).await?;
    alice.says(&town.all, "with bob", &[&town.carol]).await?;
    alice.sees(&town.all, &members.iter().collect::<Vec<_>>()).await?;
    service.look_after_groups(after(31)).await?;
    for listening in [&alice, &town.carol] {
        listening.sees(&town.all, &[&members[0], &members[2]]).await?;
    }
    town.carol.says(&town.all, "without bob", &[&alice]).await?;
    drop(alice);
    town.gathering.up(1).await?;
    town.gathering.stop().await
}

// Shows: a hub that is killed right after a lane's incarnation ended, before anything of the next one was sent, loses nothing more
// and ends nothing twice: there is one dead letter, and the members in the other domain are told, resync and go on.
// Fails if: the end happens twice or is forgotten.
// covers X8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_killed_while_a_lane_begins_anew_does_it_once() -> Result<(), Fault> {
    let dir = tempfile::tempdir().context("no directory")?;
    let world = World::open(dir.path(), 2).await?;
    let spawn = async |index: usize, fault_point: Option<&str>| world.spawn(index, Path::new(PROGRAM), fault_point).await;
    let (mut hub, mut peer) = (spawn(0, Some("committed:end_incarnation:1")).await?, spawn(1, None).await?);
    let enrol = async |index: usize, name: &str| {
        let invitation = world.invite(index, name).await?;
        let settings = federation_tests::conversation::settings(&world, name);
        Client::enrol(&world.client_dir(name), &invitation, "phone", settings).await.context("cannot enrol")
    };
    let (alice, bob) = (enrol(0, "alice").await?, enrol(1, "bob").await?);
    let group = alice.create_group(None).await.context("no group")?;
    alice.add_users(&group, &[bob.uri().user().clone()]).await.context("not added")?;
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    bob.sees(&group, &[alice.client.uri(), bob.client.uri()]).await?;
    alice.says(&group, "before", &[&bob]).await?;
    assert!(world.undelivered(0).await?.is_empty());
    peer.kill().await?;
    let forgets = ["UPDATE lanes_in SET next_sequence = 2", "DELETE FROM lane_answers WHERE lane_sequence >= 2"];
    assert!(change_database(&world, 1, &forgets).await? > 0);
    peer = spawn(1, None).await?;
    alice.client.send(&group, "what now?").await.context("cannot send")?;
    let held = async || {
        let log = std::fs::read_to_string(world.node_log(0)).context("no log")?;
        Ok(log.contains("fault point reached"))
    };
    until("the hub stands still after the end", held).await?;
    hub.kill().await?;
    hub = spawn(0, None).await?;
    resynced(&bob, &alice, &group).await?;
    alice.says(&group, "after", &[&bob]).await?;
    bob.says(&group, "as well", &[&alice]).await?;
    let storage = Storage::open_beside(&world.config(0)?.data).await?;
    let letters = storage.dead_letters(None, 10).await?;
    assert_eq!(letters.len(), 1, "{letters:?}");
    storage.close().await;
    hub.kill().await?;
    peer.kill().await
}

/// How many messages wait for a domain that is down. The bench does it with ten thousand.
const MANY: usize = 1_000;

// Shows: what was accepted for a domain while it was down arrives there in order, nothing twice and nothing lost, once it is back.
// Fails if: any message is missing, doubled or out of order.
// Is no failure: how long it takes; that is for the bench `peer_down`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_for_a_domain_arrives_in_order() -> Result<(), Fault> {
    let mut gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let group = gathering.group(&alice, &[&bob]).await?;
    let bob = Listening::new(&bob);
    bob.sees(&group, &[alice.uri(), bob.client.uri()]).await?;
    gathering.down(1).await?;
    for number in 0..MANY {
        alice.send(&group, &format!("{number}")).await.context("cannot send")?;
    }
    gathering.up(1).await?;
    gathering.node(0).service().peers().wake(&b());
    // Each hundred has its time: a slow machine needs more for all of them than for what has to happen by itself.
    for number in (99..MANY).step_by(100) {
        bob.reads(&format!("{number}")).await?;
    }
    let texts = bob.events().into_iter().filter_map(|event| match event {
        Event::Message { text, .. } => Some(text),
        _ => None,
    });
    let wanted: Vec<String> = (0..MANY).map(|number| number.to_string()).collect();
    assert_eq!(texts.collect::<Vec<_>>(), wanted);
    let lost = bob.events().iter().any(|event| matches!(event, Event::MessagesLost { .. } | Event::Unprocessable { .. }));
    assert!(!lost);
    gathering.stop().await
}

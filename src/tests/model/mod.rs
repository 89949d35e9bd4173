//! The cores of the Delivery and the Queueing Service against a small model: random sequences of valid and invalid requests, thousands
//! in a case, of many users of several domains to many groups.
//!
//! What counts as failure: a request that the model would decide otherwise; a refused one that changes something; a second Commit in
//! an epoch; members other than the MLS tree's; a delivery to anyone but those it is for; a queue with a gap, another order than the
//! group's, or a loss that no marker tells. What does not: *which* code refuses a request that has several faults.
//!
//! Groups are forged ([`crate::synth`]), so that a Commit costs the test little more than it costs the hub. No database, no clock,
//! no network: what storage and lanes do is done here with the same pure functions.

mod groups;
mod judge;
mod queues;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngSeed, TestCaseError, TestRunner};

use super::forged::Device;
use crate::base::{Domain, UnixMillis};
use crate::ds::Cause;
use crate::identity::AsRoot;
use groups::World;

/// The seed, unless `MIMI_MODEL_SEED` says otherwise: a change is to be judged by the same steps as the one before it.
const SEED: u64 = 20_230_514;

/// Cases, unless `MIMI_MODEL_CASES` says otherwise, and operations in each.
const CASES: u64 = 4;
const OPERATIONS: std::ops::Range<usize> = 2_000..2_600;

/// For how long a failing sequence is run again to make it shorter.
const SHRINKING_MAX: Duration = Duration::from_secs(60);

/// The domains; the first two are hubs of groups.
const DOMAINS: [&str; 3] = ["a.test", "b.test", "c.test"];
const HUBS: usize = 2;
const USERS_PER_DOMAIN: usize = 4;

/// What one step tries. Numbers are taken modulo whatever there is to choose from, so that any step makes sense after any other.
#[derive(Clone, Debug)]
pub(super) struct Step {
    group: u8,
    by: u8,
    what: What,
    spoil: Spoil,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Create {
        hub: u8,
    },
    /// A member's Commit, and as which request it is sent.
    Commit {
        adds: Vec<u8>,
        removes: Vec<u8>,
        policy: Option<bool>,
        updates: bool,
        kind: Kind,
    },
    /// An external Commit by any device.
    Join {
        device: u8,
        kind: JoinKind,
    },
    Message {
        epochs_back: u8,
    },
    Propose,
    Leave,
    Decline,
    /// Where the messages of a leaf go: the hub's own, or one bound to another hub, which its QS will reject.
    Queue {
        good: bool,
    },
    /// The DS wants a leaf removed, or no longer.
    Issue {
        cause: Cause,
    },
    Withdraw,
    /// A device acknowledges so many entries.
    Ack {
        device: u8,
        entries: u8,
    },
    /// A device begins a generation of its queue and retires those before.
    Retire {
        device: u8,
    },
    /// One lane moves.
    Lane {
        lane: u8,
        how: Carry,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    AddUsers,
    AddClients,
    RemoveUsers,
    RemoveClients,
    UpdateClient,
    UpdateGroup,
    DeleteGroup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinKind {
    Group,
    Client,
    Resync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carry {
    Frames(u8),
    Again,
    Gap,
    Altered,
    Reset,
}

/// What is wrong with a request that would otherwise be made as well as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoil {
    Nothing,
    /// Signed by another device's key.
    Key(u8),
    /// Through another domain.
    Through(u8),
    /// In the name of a leaf that is none.
    Leaf,
    /// For another group.
    Group,
    /// Made in the epoch before.
    Stale,
    /// A bit of the Commit, proposal or message; of the GroupInfo.
    Bit(u16),
    InfoBit(u16),
    /// The message or Commit is cut off.
    Cut(u16),
    /// A pending Remove is left out.
    Uncovered,
    /// The Welcome is left out, or there twice.
    NoWelcome,
    TwoWelcomes,
}

fn step() -> impl Strategy<Value = Step> {
    let few = || vec(any::<u8>(), 1..3);
    let commit = |adds, removes, policy, kind| What::Commit { adds, removes, policy, updates: true, kind };
    let kind = prop_oneof![
        Just(Kind::AddUsers),
        Just(Kind::AddClients),
        Just(Kind::RemoveUsers),
        Just(Kind::RemoveClients),
        Just(Kind::UpdateClient),
        Just(Kind::UpdateGroup),
        Just(Kind::DeleteGroup),
    ];
    let anything = (vec(any::<u8>(), 0..3), vec(any::<u8>(), 0..3), any::<Option<bool>>(), any::<bool>(), kind);
    let cause = prop_oneof![
        Just(Cause::Inactive),
        Just(Cause::ClientRevoked),
        Just(Cause::UserDeleted),
        Just(Cause::QueueRejected),
        Just(Cause::Expired),
    ];
    let carry = prop_oneof![
        12 => (1..6_u8).prop_map(Carry::Frames),
        2 => Just(Carry::Again),
        1 => Just(Carry::Gap),
        1 => Just(Carry::Altered),
        1 => Just(Carry::Reset),
    ];
    let what = prop_oneof![
        2 => (0..HUBS as u8).prop_map(|hub| What::Create { hub }),
        16 => few().prop_map(move |adds| commit(adds, vec![], None, Kind::AddUsers)),
        6 => few().prop_map(move |adds| commit(adds, vec![], None, Kind::AddClients)),
        6 => few().prop_map(move |removes| commit(vec![], removes, None, Kind::RemoveUsers)),
        5 => few().prop_map(move |removes| commit(vec![], removes, None, Kind::RemoveClients)),
        16 => Just(commit(vec![], vec![], None, Kind::UpdateClient)),
        4 => any::<bool>().prop_map(move |open| commit(vec![], vec![], Some(open), Kind::UpdateGroup)),
        10 => anything.prop_map(|(adds, removes, policy, updates, kind)| What::Commit { adds, removes, policy, updates, kind }),
        4 => any::<u8>().prop_map(|device| What::Join { device, kind: JoinKind::Group }),
        4 => any::<u8>().prop_map(|device| What::Join { device, kind: JoinKind::Client }),
        4 => Just(What::Join { device: 0, kind: JoinKind::Resync }),
        40 => (0..7_u8).prop_map(|epochs_back| What::Message { epochs_back: epochs_back.saturating_sub(1) }),
        6 => Just(What::Propose),
        1 => Just(What::Leave),
        1 => Just(What::Decline),
        4 => (0..6_u8).prop_map(|number| What::Queue { good: number > 0 }),
        4 => cause.prop_map(|cause| What::Issue { cause }),
        2 => Just(What::Withdraw),
        8 => (any::<u8>(), 1..60_u8).prop_map(|(device, entries)| What::Ack { device, entries }),
        2 => any::<u8>().prop_map(|device| What::Retire { device }),
        20 => (any::<u8>(), carry).prop_map(|(lane, how)| What::Lane { lane, how }),
    ];
    let spoil = prop_oneof![
        40 => Just(Spoil::Nothing),
        1 => any::<u8>().prop_map(Spoil::Key),
        1 => any::<u8>().prop_map(Spoil::Through),
        1 => Just(Spoil::Leaf),
        1 => Just(Spoil::Group),
        2 => Just(Spoil::Stale),
        2 => any::<u16>().prop_map(Spoil::Bit),
        1 => any::<u16>().prop_map(Spoil::InfoBit),
        1 => any::<u16>().prop_map(Spoil::Cut),
        2 => Just(Spoil::Uncovered),
        1 => Just(Spoil::NoWelcome),
        1 => Just(Spoil::TwoWelcomes),
    ];
    (any::<u8>(), any::<u8>(), what, spoil).prop_map(|(group, by, what, spoil)| Step { group, by, what, spoil })
}

/// The domains' roots, and everybody's devices: of each user a phone, the same phone with another key, and a laptop. Made once:
/// certificates cost more than anything else here.
pub(super) struct People {
    pub(super) domains: Vec<Domain>,
    pub(super) roots: Vec<AsRoot>,
    pub(super) devices: Vec<Device>,
}

static PEOPLE: LazyLock<People> = LazyLock::new(|| {
    let domains: Vec<Domain> = DOMAINS.iter().map(|name| name.parse().expect("a domain")).collect();
    let now = UnixMillis::now();
    let roots: Vec<AsRoot> = domains.iter().map(|domain| AsRoot::create(domain, now).expect("a root")).collect();
    let user = |root: &AsRoot, number: usize| {
        let phone = Device::new(root, &format!("user{number}"));
        [phone.sibling("laptop"), phone.sibling("phone"), phone]
    };
    // Users of all domains stand side by side, so that small numbers already mean several domains.
    let devices = (0..USERS_PER_DOMAIN).flat_map(|number| roots.iter().flat_map(move |root| user(root, number))).collect();
    People { domains, roots, devices }
});

fn run<'a>(steps: impl Iterator<Item = &'a Step>) -> Result<groups::Counts, (usize, TestCaseError)> {
    let mut world = World::new(&PEOPLE);
    let mut done = 0;
    for step in steps {
        world.step(step).map_err(|error| (done, error))?;
        done += 1;
    }
    world.finish().map_err(|error| (done, error))
}

/// Fewer steps that still fail, as long as there is time: without what comes after the failure, then without ever shorter stretches.
fn shortened(mut steps: Vec<Step>, failed_at: usize, mut why: TestCaseError) -> (Vec<Step>, TestCaseError) {
    steps.truncate(failed_at + 1);
    let began = Instant::now();
    let mut stretch = steps.len().div_ceil(2);
    while stretch > 0 {
        let mut from = 0;
        while from < steps.len() && began.elapsed() < SHRINKING_MAX {
            let rest = steps.iter().take(from).chain(steps.iter().skip(from + stretch));
            match run(rest) {
                Ok(_) => from += stretch,
                Err((failed_at, error)) => {
                    let rest = steps.iter().take(from).chain(steps.iter().skip(from + stretch));
                    steps = rest.take(failed_at + 1).cloned().collect();
                    why = error;
                }
            }
        }
        stretch /= 2;
    }
    (steps, why)
}

#[test]
fn the_cores_do_what_the_model_says() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seed = number("MIMI_MODEL_SEED").unwrap_or(SEED);
    let cases = number("MIMI_MODEL_CASES").unwrap_or(CASES);
    println!("MIMI_MODEL_SEED={seed} repeats this run");
    let mut runner = TestRunner::new(ProptestConfig { rng_seed: RngSeed::Fixed(seed), ..ProptestConfig::default() });
    let mut total = groups::Counts::default();
    for _ in 0..cases {
        let steps = vec(step(), OPERATIONS).new_tree(&mut runner).expect("steps").current();
        match run(steps.iter()) {
            Ok(counts) => total.add(&counts),
            Err((failed_at, error)) => {
                let (steps, error) = shortened(steps, failed_at, error);
                let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
                panic!("MIMI_MODEL_SEED={seed}: {error}\nafter these {} steps:\n{}", steps.len(), steps.join("\n"));
            }
        }
    }
    println!("{total:?}");
    // Else the operations do not reach what they are there for.
    assert!(total.is_plenty(), "too little of something: {total:?}");
}

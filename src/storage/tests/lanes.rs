//! Lanes out: their counts, incarnations that end, dead letters.

use super::*;
use crate::storage::dead_letters::{DeadLetter, DeadReason, ForgetDeadLetters};
use crate::storage::lanes::{EndIncarnation, LaneBounds, LaneStatus, ResetFrame, SweepFrames};

const B: &str = "b.test";

/// Frames for b.test, accepted at the given times.
async fn lane(storage: &Storage, accepted_at: &[u64]) {
    storage.write(accept(1, None, Vec::new())).await.expect("written");
    for (number, at) in accepted_at.iter().enumerate() {
        let mut frame = delivery(Vec::new(), &[B]);
        frame.delivery = vec![number as u8; 10];
        frame.now = UnixMillis(*at);
        storage.write(accept(100 + number as u8, Some(0), vec![frame])).await.expect("written");
    }
}

async fn status(storage: &Storage) -> LaneStatus {
    storage.lane_status(&domain(B), GROUP).await.expect("read").expect("frames wait")
}

/// What waits: sequences and messages.
async fn waiting(storage: &Storage) -> Vec<(u64, Vec<u8>)> {
    let frames = storage.waiting_frames(&domain(B), GROUP, 0, 1_000, 1_000_000).await.expect("read");
    frames.into_iter().map(|frame| (frame.lane_sequence, frame.delivery)).collect()
}

async fn dropped(storage: &Storage, up_to: u64) {
    let lanes = vec![Delivered { group_id: GROUP.to_owned(), incarnation: status(storage).await.incarnation, up_to }];
    storage.write(DropFrames { domain: domain(B), lanes }).await.expect("written");
}

/// The end of the lane's incarnation before `keep_from`; `next` names the one that follows.
async fn ending(storage: &Storage, keep_from: u64, next: u8, at: u64) -> EndIncarnation {
    let status = status(storage).await;
    let sizes = storage.frame_sizes(&domain(B), GROUP, 1, 1_000).await.expect("read");
    let over: Vec<_> = sizes.into_iter().filter(|frame| frame.lane_sequence < keep_from).collect();
    let letter = DeadLetter {
        domain: domain(B),
        group_id: GROUP.to_owned(),
        incarnation: status.incarnation,
        lane_sequence: keep_from.saturating_sub(1),
        frames: over.iter().filter(|frame| !frame.is_reset).count() as u64,
        octets: over.iter().map(|frame| frame.octets).sum(),
        epoch: 3,
        recipients: 2,
        digest: Some([7; 32]),
        reason: DeadReason::Refused,
        detail: "on purpose".to_owned(),
        died_at: UnixMillis(at),
    };
    EndIncarnation {
        frames: over.len() as u64,
        octets: letter.octets,
        letter,
        keep_from,
        next: Incarnation([next; 16]),
        reset: ResetFrame { epoch: 3, recipients: vec![1], delivery: vec![2, 2] },
        hub: domain("a.test"),
    }
}

/// What the counts ought to say, by a walk over all frames.
async fn counts_are_right(storage: &Storage) {
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM lane_frames f JOIN lanes l USING (domain, group_id) WHERE f.lane_sequence > l.begins_after) AS n, \
         (SELECT COALESCE(SUM(f.octets), 0) FROM lane_frames f JOIN lanes l USING (domain, group_id) \
         WHERE f.lane_sequence > l.begins_after) AS octets, (SELECT SUM(frames) FROM lanes) AS frames, \
         (SELECT SUM(octets) FROM lanes) AS counted, (SELECT COUNT(*) FROM bodies) AS bodies, \
         (SELECT COUNT(*) FROM lane_frames) AS rows_here",
    );
    let row = row.fetch_one(storage.readers()).await.expect("readable");
    let number = |column: &str| row.try_get::<i64, _>(column).expect("a number");
    assert_eq!((number("n"), number("octets")), (number("frames"), number("counted")));
    assert_eq!(number("bodies"), number("rows_here"), "each frame has its body, and no body is left over");
}

// Shows: a frame that is lost is told, what follows it keeps its order behind a reset, and a repeat of the end, or a drop that was
// meant for the incarnation before, changes nothing.
#[tokio::test]
async fn an_incarnation_ends_once_and_what_is_left_follows_a_reset() {
    let (_directory, storage) = open().await;
    lane(&storage, &[10, 20, 30, 40, 50]).await;
    dropped(&storage, 1).await;
    let before = status(&storage).await;
    assert_eq!((before.first_sequence, before.next_sequence, before.frames), (2, 6, 4));
    assert_eq!(before.undelivered_since, UnixMillis(20));
    let end = ending(&storage, 3, 9, 60).await;
    let letter = end.letter.clone();
    let (first, again) = (storage.write(end).await, ending(&storage, 3, 8, 60).await);
    assert!(first.expect("written"));
    let of_the_old = EndIncarnation { letter: letter.clone(), ..again };
    assert!(!storage.write(of_the_old).await.expect("answered"), "it is over already");

    let after = status(&storage).await;
    assert_eq!((after.incarnation, after.first_sequence, after.next_sequence, after.frames), (Incarnation([9; 16]), 1, 5, 4));
    assert_eq!(after.undelivered_since, UnixMillis(20), "nothing was delivered since");
    let expected = vec![(1, vec![2, 2]), (2, vec![2; 10]), (3, vec![3; 10]), (4, vec![4; 10])];
    assert_eq!(waiting(&storage).await, expected);
    assert_eq!(storage.dead_letters(None, 10).await.expect("read"), [letter]);
    counts_are_right(&storage).await;

    let old = vec![Delivered { group_id: GROUP.to_owned(), incarnation: before.incarnation, up_to: 5 }];
    storage.write(DropFrames { domain: domain(B), lanes: old }).await.expect("written");
    assert_eq!(waiting(&storage).await, expected, "what was delivered then is another matter");
    dropped(&storage, 1).await;
    assert_eq!(status(&storage).await.undelivered_since, UnixMillis(30), "since the first that is left");
    dropped(&storage, 4).await;
    assert!(storage.lane_status(&domain(B), GROUP).await.expect("read").is_none(), "nothing waits");
    counts_are_right(&storage).await;
}

// Shows: where nothing is lost that is known (the other side holds other frames), the first frame follows a reset; and a reset that
// is replaced leaves no trace, however often.
#[tokio::test]
async fn a_lane_may_begin_anew_before_its_first_frame_and_again() {
    let (_directory, storage) = open().await;
    lane(&storage, &[10, 20]).await;
    for (keep_from, next) in [(1, 7), (2, 8), (2, 9)] {
        let end = ending(&storage, keep_from, next, 60 + u64::from(next)).await;
        assert!(storage.write(end).await.expect("written"));
        assert_eq!(waiting(&storage).await, [(1, vec![2, 2]), (2, vec![0; 10]), (3, vec![1; 10])]);
        counts_are_right(&storage).await;
    }
    let letters = storage.dead_letters(Some(&domain(B)), 10).await.expect("read");
    assert!(letters.iter().all(|letter| letter.frames == 0), "{letters:?}");
    // All of it lost: the reset is what is left.
    let end = ending(&storage, 4, 10, 100).await;
    assert!(storage.write(end).await.expect("written"));
    assert_eq!(waiting(&storage).await, [(1, vec![2, 2])]);
    assert_eq!(status(&storage).await.next_sequence, 2);
    let mut more = delivery(Vec::new(), &[B]);
    more.delivery = vec![5; 10];
    storage.write(accept(90, Some(0), vec![more])).await.expect("written");
    assert_eq!(waiting(&storage).await, [(1, vec![2, 2]), (2, vec![5; 10])]);
}

// Shows: frames that died go a few at a time, and no other; the counts of what waits never included them.
#[tokio::test]
async fn dead_frames_are_swept_away_and_no_other() {
    let (_directory, storage) = open().await;
    lane(&storage, &(1..=20).collect::<Vec<_>>()).await;
    let end = ending(&storage, 16, 9, 60).await;
    assert!(storage.write(end).await.expect("written"));
    let left = waiting(&storage).await;
    assert_eq!(left.len(), 6, "a reset and five frames");
    counts_are_right(&storage).await;
    assert_eq!(storage.unswept_lane().await.expect("read"), Some((domain(B), GROUP.to_owned())));
    let sweep = || SweepFrames { domain: domain(B), group_id: GROUP.to_owned(), limit: 10 };
    assert_eq!(storage.write(sweep()).await.expect("written"), 10);
    assert!(storage.unswept_lane().await.expect("read").is_some());
    assert_eq!(storage.write(sweep()).await.expect("written"), 4, "the place of the last is the reset's");
    assert_eq!(storage.unswept_lane().await.expect("read"), None);
    assert_eq!(waiting(&storage).await, left);
    assert_eq!(count(&storage, "lane_frames").await, 6);
    counts_are_right(&storage).await;
}

// Shows: each bound finds its lanes, and an old frame that died does not make a lane look old for ever.
#[tokio::test]
async fn lanes_over_a_bound_are_found() {
    let (_directory, storage) = open().await;
    lane(&storage, &[10, 20, 30]).await;
    let octets = status(&storage).await.octets;
    let within = LaneBounds { frames_max: 3, octets_max: octets, accepted_before: UnixMillis(10) };
    let over = async |bounds: LaneBounds| storage.lanes_over(&bounds).await.expect("read").len();
    assert_eq!(over(within).await, 0);
    assert_eq!(over(LaneBounds { frames_max: 2, ..within }).await, 1);
    assert_eq!(over(LaneBounds { octets_max: octets - 1, ..within }).await, 1);
    assert_eq!(over(LaneBounds { accepted_before: UnixMillis(11), ..within }).await, 1);
    let end = ending(&storage, 2, 9, 60).await;
    storage.write(end).await.expect("written");
    let roomy = LaneBounds { frames_max: 9, octets_max: 1_000, ..within };
    assert_eq!(over(LaneBounds { accepted_before: UnixMillis(20), ..roomy }).await, 0);
    assert_eq!(over(LaneBounds { accepted_before: UnixMillis(21), ..roomy }).await, 1);
    let hopeless = async |undelivered| storage.hopeless_lanes(UnixMillis(undelivered), UnixMillis(0)).await.expect("read").len();
    assert_eq!((hopeless(10).await, hopeless(11).await), (0, 1), "nothing was delivered since the first was accepted");
    let totals = storage.lane_totals().await.expect("read");
    assert_eq!((totals.len(), totals[0].lanes, totals[0].frames, totals[0].undelivered_since), (1, 1, 3, UnixMillis(10)));
}

#[tokio::test]
async fn dead_letters_are_bounded_by_number_and_age() {
    let (_directory, storage) = open().await;
    lane(&storage, &[10]).await;
    let most = crate::base::limits::DEAD_LETTERS_PER_DOMAIN_MAX;
    for number in 0..most + 5 {
        let mut end = ending(&storage, u64::from(number > 0) + 1, 0, 1_000 + number).await;
        end.next = Incarnation::random();
        assert!(storage.write(end).await.expect("written"));
    }
    let letters = storage.dead_letters(None, 10_000).await.expect("read");
    assert_eq!(letters.len() as u64, most);
    assert_eq!(letters[0].died_at, UnixMillis(1_000 + most + 4), "the newest first");
    storage.write(ForgetDeadLetters { died_before: UnixMillis(1_000 + most) }).await.expect("written");
    let totals = storage.dead_letter_totals().await.expect("read");
    assert_eq!((totals.len(), totals[0].letters, totals[0].frames), (1, 5, 0));
}

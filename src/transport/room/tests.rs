//! What connections begin with, what they get, and who is cut.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use quinn::Endpoint;

use super::*;
use crate::transport::testing::{Ca, bind, domain, local};

/// A connection between two nodes, as the dialling and as the accepting one has it.
struct Pair {
    dialled: Connection,
    accepted: Connection,
    _endpoints: [Endpoint; 2],
}

async fn pair() -> Pair {
    let ca = Ca::new("ca");
    let server = bind(Some(ca.node("b.test").federation_server().expect("a server")));
    let client = bind(None);
    let config = ca.node("a.test").federation_client().expect("a client");
    let (dialled, accepted) = tokio::join!(
        async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.expect("a connection") },
        async { server.accept().await.expect("an open endpoint").await.expect("a handshake") }
    );
    Pair { dialled, accepted, _endpoints: [server, client] }
}

fn room() -> Arc<Room> {
    Room::new(&PortLimits::default())
}

/// What a future is ready with now.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn a() -> Holder {
    Holder::Peer(domain("a.test"))
}

fn stranger(last: u8) -> Holder {
    Holder::Stranger(IpAddr::from([192, 0, 2, last]))
}

#[tokio::test]
async fn a_connection_has_few_streams_until_it_is_known_whose_it_is() {
    let pair = pair().await;
    let opened: Vec<_> = std::iter::from_fn(|| now(pair.dialled.open_bi())).collect();
    assert_eq!(opened.len(), limits::UNSETTLED_STREAMS_MAX as usize);
    let room = room();
    let _stranger = room.settle(&pair.accepted, stranger(1));
    assert!(now(pair.dialled.open_bi()).is_none());
    let _tenancy = room.settle(&pair.accepted, a());
    let mut more = Vec::new();
    while opened.len() + more.len() < limits::PEER_STREAMS_MAX as usize {
        more.push(pair.dialled.open_bi().await.expect("a stream"));
    }
    assert!(now(pair.dialled.open_bi()).is_none(), "there is a limit");
}

#[tokio::test]
async fn a_connection_has_a_small_window_until_it_is_known_whose_it_is() {
    let pair = pair().await;
    // Nobody reads: what can be written is what the other side has promised to keep.
    let mut streams = Vec::new();
    while let Some(stream) = now(pair.dialled.open_bi()) {
        streams.push(stream.expect("a stream").0);
    }
    let part = [0; 1024];
    let mut written = 0;
    while let Some(octets) = now(streams[0].write(&part)) {
        written += octets.expect("an open stream");
    }
    assert_eq!(written, limits::UNSETTLED_WINDOW_BYTES as usize);
    let _tenancy = room().settle(&pair.accepted, a());
    let mut of_stream = written;
    for stream in &mut streams {
        while of_stream < limits::STREAM_WINDOW_BYTES as usize {
            of_stream += stream.write(&part).await.expect("an open stream");
        }
        of_stream = 0;
    }
    let mut last = pair.dialled.open_bi().await.expect("a stream").0;
    assert!(now(last.write(&part)).is_none(), "there is a limit");
}

#[tokio::test]
async fn the_last_of_many_peers_has_a_small_window() {
    let pair = pair().await;
    let room = room();
    let others: Vec<_> = (0..limits::WIDE_CONNECTIONS_MAX).map(|_| room.wide.clone().try_acquire_owned()).collect();
    assert!(others.iter().all(Result::is_ok));
    let _tenancy = room.settle(&pair.accepted, a());
    let mut stream = pair.dialled.open_bi().await.expect("a stream").0;
    let mut written = 0;
    while written < limits::SETTLED_WINDOW_BYTES as usize {
        written += stream.write(&[0; 1024]).await.expect("an open stream");
    }
    assert!(now(stream.write(&[0; 1024])).is_none(), "there is a limit");
}

#[tokio::test]
async fn an_octet_at_a_time_is_no_request() {
    let pair = pair().await;
    let (mut send, _recv) = pair.dialled.open_bi().await.expect("a stream");
    let trickle = async {
        // Fast enough that each single octet is in time, and no more than a part of a frame in all.
        for _ in 0..limits::FRAME_CHUNK_BYTES {
            if send.write_all(b"x").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let read = async {
        let (_send, mut recv) = pair.accepted.accept_bi().await.expect("a stream");
        let outcome = frame::read_paced(&mut recv, limits::FRAME_BYTES_MAX, Duration::from_millis(100)).await;
        let _ = recv.stop(CloseCode::TimedOut.number());
        outcome
    };
    let ((), outcome) = tokio::join!(trickle, read);
    assert!(matches!(outcome, Err(FrameError::TimedOut)), "{outcome:?}");
}

#[tokio::test]
async fn who_takes_an_answer_an_octet_at_a_time_does_not_get_it() {
    let pair = pair().await;
    let (mut send, mut recv) = pair.dialled.open_bi().await.expect("a stream");
    send.write_all(b"x").await.expect("room");
    let (mut answering, _recv) = pair.accepted.accept_bi().await.expect("a stream");
    let answer = vec![7; limits::FRAME_BYTES_MAX];
    let answered = async {
        let outcome = frame::write_paced(&mut answering, &answer, Duration::from_millis(100)).await;
        let _ = answering.reset(CloseCode::TimedOut.number());
        outcome
    };
    let take = async {
        while let Ok(Some(_)) = recv.read_chunk(1, true).await {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    let (outcome, ()) = tokio::join!(answered, take);
    assert!(matches!(outcome, Err(FrameError::TimedOut)), "{outcome:?}");
}

#[tokio::test]
async fn requests_and_answers_are_counted_as_long_as_they_are_there() {
    let pair = pair().await;
    let room = room();
    let tenancy = room.settle(&pair.accepted, a());
    let (mut send, mut recv) = pair.dialled.open_bi().await.expect("a stream");
    let request = vec![1; 100_000];
    let asked = async {
        frame::write_frame(&mut send, &request).await.expect("room");
        frame::read_frame(&mut recv, limits::FRAME_BYTES_MAX).await.expect("a frame")
    };
    let answered = async {
        let (mut send, mut recv) = pair.accepted.accept_bi().await.expect("a stream");
        let frame = tenancy.request_frame(&mut recv, limits::FRAME_BYTES_MAX).await.expect("a frame").expect("a frame");
        assert_eq!((frame.len(), room.ledger().total()), (request.len(), request.len()));
        tenancy.send_answer(&mut send, &frame).await.expect("it is read");
        assert_eq!(room.ledger().total(), request.len(), "of the answer nothing is left");
        drop(frame);
        (send, recv)
    };
    let (answer, _held) = tokio::join!(asked, answered);
    assert!(answer == Some(request));
    assert_eq!(room.ledger().total(), 0);
}

#[tokio::test]
async fn a_frame_that_waits_too_long_for_room_was_not_processed() {
    let room = room();
    let part = limits::FRAME_BYTES_MAX;
    let mut all = Vec::new();
    while let Some(held) = now(room.take(&a(), part, Duration::MAX)) {
        all.push(held.expect("room"));
    }
    let outcome = room.take(&a(), part, Duration::from_millis(1)).await.map(|_| ());
    assert!(matches!(&outcome, Err(error @ FrameError::NoRoom) if error.code() == CloseCode::NotProcessed), "{outcome:?}");
    // What is given back wakes whoever waits.
    let a = a();
    let (taken, ()) = tokio::join!(room.take(&a, part, Duration::from_secs(600)), async { drop(all.pop()) });
    taken.expect("room");
}

#[tokio::test]
async fn a_half_read_frame_is_cut_when_others_need_its_room() {
    let pair = pair().await;
    let room = Room::new(&PortLimits { held_bytes_max: 4 * limits::FRAME_BYTES_MAX, ..PortLimits::default() });
    let tenancy = room.settle(&pair.accepted, a());
    let (mut send, _recv) = pair.dialled.open_bi().await.expect("a stream");
    // A length, and nothing after it.
    send.write_all(&(limits::FRAME_BYTES_MAX as u32).to_be_bytes()).await.expect("room");
    let (_send, mut recv) = pair.accepted.accept_bi().await.expect("a stream");
    let others = async {
        while room.ledger().total() == 0 {
            tokio::task::yield_now().await;
        }
        let mut held = Vec::new();
        for other in ["b.test", "c.test", "d.test", "e.test", "f.test"] {
            let octets = limits::FRAME_BYTES_MAX / 2 + limits::FRAME_BYTES_MAX / 4;
            held.push(room.take(&Holder::Peer(domain(other)), octets, Duration::from_secs(600)).await.expect("room"));
        }
    };
    let (cut, ()) = tokio::join!(tenancy.next_frame(&mut recv, limits::FRAME_BYTES_MAX), others);
    assert!(matches!(cut, Err(FrameError::NoRoom)), "{cut:?}");
}

#[tokio::test]
async fn the_newest_connections_of_a_holder_stay() {
    let pair = pair().await;
    let room = room();
    let first = room.settle(&pair.accepted, a());
    let newer: Vec<_> = (1..limits::PEER_CONNECTIONS_MAX).map(|_| room.tenants().enter(&a(), pair.accepted.clone())).collect();
    assert!(newer.iter().all(|(_, ousted)| ousted.is_empty()));
    assert_eq!(pair.accepted.close_reason(), None);
    let _last = room.settle(&pair.accepted, a());
    let quinn::ConnectionError::ApplicationClosed(close) = pair.dialled.closed().await else { unreachable!("told so") };
    assert_eq!(close.error_code, CloseCode::Superseded.number());
    drop(first);
    assert_eq!(room.tenants().by_holder[&a()].len(), limits::PEER_CONNECTIONS_MAX, "it had left already");
}

#[test]
fn of_too_many_strangers_the_oldest_of_the_busiest_machine_goes() {
    let mut tenants = Tenants::default();
    let mut machines = (1..=u8::MAX).cycle();
    for number in 0..limits::STRANGER_CONNECTIONS_PER_ADDRESS_MAX {
        assert_eq!(tenants.enter(&stranger(0), number).1, [0; 0]);
    }
    assert_eq!(tenants.enter(&stranger(0), 999).1, [0], "one machine alone");
    for number in limits::STRANGER_CONNECTIONS_PER_ADDRESS_MAX..limits::STRANGERS_MAX {
        assert_eq!(tenants.enter(&stranger(machines.next().expect("it goes on")), number).1, [0; 0]);
    }
    assert_eq!(tenants.strangers, limits::STRANGERS_MAX);
    let (id, ousted) = tenants.enter(&stranger(200), 1_000);
    assert_eq!((ousted, tenants.strangers), (vec![1], limits::STRANGERS_MAX));
    tenants.leave(&stranger(200), id);
    tenants.leave(&stranger(200), id);
    assert_eq!(tenants.strangers, limits::STRANGERS_MAX - 1);
    assert_eq!(tenants.enter(&a(), 1).1, [0; 0], "strangers are not in the way of those with a name");
}

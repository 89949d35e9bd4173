//! Whether UDP gets to an address and back, which QUIC itself does not tell: quinn hears no ICMP. For a diagnosis only.
//!
//! The knock is a QUIC packet of a version that nobody speaks, to which every QUIC server answers with those that it speaks (RFC
//! 9000 §6.1), before any TLS. It leaves from a connected socket of its own, which the system tells of ICMP errors.

use std::io;
use std::net::SocketAddr;

use rand::RngCore as _;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::base::limits;

/// What came of a knock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knock {
    /// Something there speaks QUIC.
    Answered,
    /// The machine says that nothing listens on the port.
    Refused,
    /// The machine or its network cannot be reached, as a router or this machine says.
    Unreachable(String),
    /// Nothing came back in time.
    Silent,
}

/// Knocks at `address` until an answer or `deadline`, a few times, for packets may be lost.
pub async fn udp(address: SocketAddr, deadline: Instant) -> Knock {
    let knocking = async {
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        let packet = packet();
        let mut answer = [0; 64];
        loop {
            socket.send(&packet).await?;
            if let Ok(received) = timeout(limits::KNOCK_INTERVAL, socket.recv(&mut answer)).await {
                received?;
                return Ok::<_, io::Error>(Knock::Answered);
            }
        }
    };
    match timeout_at(deadline, knocking).await {
        Ok(Ok(knock)) => knock,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        Ok(Err(error)) => Knock::Unreachable(error.to_string()),
        Err(_) => Knock::Silent,
    }
}

/// Whether the machine at `address` answers a TCP connection to the same port, be it by refusing it. One that does, and is silent
/// to UDP, is there.
pub async fn tcp(address: SocketAddr) -> bool {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let Ok(socket) = socket else { return false };
    match timeout(limits::KNOCK_TCP_TIMEOUT, socket.connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset),
        Err(_) => false,
    }
}

/// An Initial packet of a version kept free for this (RFC 9000 §15). A server answers no smaller one.
fn packet() -> Vec<u8> {
    const VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
    let mut ids = [0; 16];
    rand::rng().fill_bytes(&mut ids);
    let (destination, source) = ids.split_at(8);
    let mut packet = [&[0xc0][..], &VERSION, &[8], destination, &[8], source].concat();
    packet.resize(limits::KNOCK_BYTES, 0);
    packet
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::transport::testing::{Ca, bind, local};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_node_a_closed_port_and_silence_are_told_apart() {
        let node = bind(Some(Ca::new("ca").node("b.test").federation_server().expect("a server")));
        assert_eq!(udp(local(&node), Instant::now() + PATIENCE).await, Knock::Answered);
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("an address");
        assert_eq!(udp(address, Instant::now() + Duration::from_millis(50)).await, Knock::Silent);
        drop(silent);
        assert_eq!(udp(address, Instant::now() + PATIENCE).await, Knock::Refused);
        assert!(tcp(address).await, "it refuses, so it is there");
    }
}

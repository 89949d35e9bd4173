"""A QUIC client that behaves badly, on aioquic: nothing in it was written for this project but this file.

It does one kind of harm to one port, bounded in number and time, and prints one line of JSON: how every connection and stream of
it was ended by the other side, counted by ending. An ending is `alert N` (the connection, with this TLS alert), `close N` (the
connection, with this application code), `transport N` (the connection, with this code of QUIC), `reset N` (the stream, with
this application code), `answer N` (the stream, with an answer of N octets), `finished` (the stream, without one), or `none`
(nothing, until this client gave up).
"""

import argparse
import asyncio
import collections
import json
import os
import random
import socket
import ssl
import struct
import time

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    StreamDataReceived,
    StreamReset,
)

CRYPTO_ERROR = 0x100
TIMED_OUT = "none"


class Bad(QuicConnectionProtocol):
    """Keeps what the other side says about each stream, and about the connection."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ended = asyncio.get_running_loop().create_future()
        self.streams = {}
        self.received = collections.Counter()

    def stream(self, stream_id):
        return self.streams.setdefault(stream_id, asyncio.get_running_loop().create_future())

    def end_stream(self, stream_id, how):
        if not self.stream(stream_id).done():
            self.stream(stream_id).set_result(how)

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.received[event.stream_id] += len(event.data)
            if event.end_stream:
                octets = self.received[event.stream_id]
                self.end_stream(event.stream_id, f"answer {octets}" if octets else "finished")
        elif isinstance(event, StreamReset):
            self.end_stream(event.stream_id, f"reset {event.error_code}")
        elif isinstance(event, ConnectionTerminated):
            how = ending(event)
            if not self.ended.done():
                self.ended.set_result(how)
            for stream_id in list(self.streams):
                self.end_stream(stream_id, how)

    def is_open(self):
        return not self.ended.done()

    def send(self, stream_id, octets, end=False):
        """Writes, unless the other side has already ended the stream."""
        if not self.is_open() or self.stream(stream_id).done():
            return False
        try:
            self._quic.send_stream_data(stream_id, octets, end)
        except Exception:
            return False
        self.transmit()
        return True

    def open(self):
        stream_id = self._quic.get_next_available_stream_id()
        self.stream(stream_id)
        return stream_id

    async def how(self, stream_id, patience):
        """How a stream ends."""
        return await ending_of(self.stream(stream_id), patience)


def ending(event):
    if event.frame_type is None:
        return f"close {event.error_code}"
    if CRYPTO_ERROR <= event.error_code < CRYPTO_ERROR + 0x100:
        return f"alert {event.error_code - CRYPTO_ERROR}"
    return f"transport {event.error_code}"


async def ending_of(future, patience):
    done, _ = await asyncio.wait([future], timeout=patience)
    return future.result() if done else TIMED_OUT


class Attack:
    def __init__(self, options):
        self.options = options
        self.seen = collections.Counter()
        self.figures = collections.Counter()
        self.random = random.Random(options.seed)
        self.deadline = time.monotonic() + options.seconds

    def left(self):
        return max(0.0, self.deadline - time.monotonic())

    def saw(self, how):
        self.seen[how] += 1

    def configuration(self, **more):
        configuration = QuicConfiguration(is_client=True, alpn_protocols=[self.options.alpn], server_name=self.options.name, **more)
        if self.options.ca:
            configuration.load_verify_locations(self.options.ca)
        else:
            configuration.verify_mode = ssl.CERT_NONE
        if self.options.certificate:
            configuration.load_cert_chain(self.options.certificate, self.options.key)
        return configuration

    def connect(self, made=None, **more):
        """`made`: gets the protocol, also when the handshake fails."""

        def protocol(*args, **kwargs):
            bad = Bad(*args, **kwargs)
            if made is not None:
                made.append(bad)
            return bad

        configuration = self.configuration(**more)
        return connect(self.options.host, self.options.port, configuration=configuration, create_protocol=protocol)

    async def greet(self, bad):
        """Says hello, as peers do first."""
        if not self.options.hello:
            return True
        stream_id = bad.open()
        bad.send(stream_id, frame(bytes.fromhex(self.options.hello)), end=True)
        how = await bad.how(stream_id, self.left())
        if not how.startswith("answer"):
            self.saw(f"hello: {how}")
            return False
        return True

    async def connected(self, work, **more):
        """Connects, greets and does `work`; what ends the connection before is counted."""
        made = []
        try:
            async with self.connect(made, **more) as bad:
                self.figures["connections"] += 1
                if await self.greet(bad):
                    await work(bad)
        except ConnectionError:
            self.saw("handshake: " + await ending_of(made[0].ended, self.left()))

    # --- The kinds of harm ---

    async def identity(self):
        """Connects with whatever certificate it was given, or none, and asks something."""

        async def work(bad):
            stream_id = bad.open()
            bad.send(stream_id, frame(b"\x00"), end=True)
            self.saw(await bad.how(stream_id, self.left()))

        for _ in range(self.options.count):
            await self.connected(work)

    async def garbage(self):
        """Frames of random octets, whole ones, cut ones and such as announce more than is allowed, one to a stream."""

        async def work(bad):
            for number in range(self.options.count):
                if not bad.is_open():
                    break
                octets = self.random.randbytes(self.random.randrange(1, 2_000))
                kind = number % 3
                if kind == 1:
                    octets = struct.pack(">I", len(octets) + 1) + octets
                elif kind == 2:
                    octets = struct.pack(">I", 0x7FFF_FFFF) + octets
                else:
                    octets = frame(octets)
                stream_id = bad.open()
                bad.send(stream_id, octets, end=True)
                how = await bad.how(stream_id, self.left())
                self.saw(["whole", "cut", "huge"][kind] + ": " + how)

        await self.connected(work)

    async def half(self):
        """Streams that announce the largest frame, send a part of it and nothing more."""

        async def work(bad):
            part = b"\x00" * self.options.octets
            streams = []
            for _ in range(self.options.count):
                if not bad.is_open():
                    break
                stream_id = bad.open()
                streams.append(stream_id)
                bad.send(stream_id, struct.pack(">I", self.options.announce) + part)
                # Lets the loop send and hear.
                await asyncio.sleep(0)
            for stream_id in streams:
                self.saw(await bad.how(stream_id, self.left()))

        await asyncio.gather(*(self.connected(work) for _ in range(self.options.connections)))

    async def second(self):
        """A stream a second, each with a request that never ends."""

        async def work(bad):
            streams = []
            for _ in range(self.options.count):
                if not bad.is_open():
                    break
                stream_id = bad.open()
                streams.append(stream_id)
                bad.send(stream_id, struct.pack(">I", 1_000) + b"half")
                await asyncio.sleep(1)
            for stream_id in streams:
                self.saw(await bad.how(stream_id, self.left()))

        await self.connected(work)

    async def trickle(self):
        """Requests of which an octet is sent a second."""

        async def one(bad, stream_id):
            begun = time.monotonic()
            bad.send(stream_id, struct.pack(">I", 1_000))
            while bad.is_open() and self.left() and bad.send(stream_id, b"x"):
                self.figures["octets"] += 1
                await asyncio.sleep(1)
            self.saw(await bad.how(stream_id, self.left()))
            self.figures["longest_ms"] = max(self.figures["longest_ms"], int(1000 * (time.monotonic() - begun)))

        async def work(bad):
            await asyncio.gather(*(one(bad, bad.open()) for _ in range(self.options.count)))

        await self.connected(work)

    async def slow_reader(self):
        """Requests whose answers it does not take but for their first octets."""

        async def work(bad):
            # aioquic would raise the limit of a stream as soon as half of it is used.
            bad._quic._write_stream_limits = lambda *args, **kwargs: None
            streams = []
            for _ in range(self.options.count):
                stream_id = bad.open()
                streams.append(stream_id)
                bad.send(stream_id, frame(bytes.fromhex(self.options.request)), end=True)
            for stream_id in streams:
                self.saw(await bad.how(stream_id, self.left()))

        # Enough for the answer to hello, and not for the others.
        await self.connected(work, max_stream_data=self.options.octets)

    async def hold(self):
        """Connections that say nothing, all at once."""
        held = asyncio.Event()

        async def one():
            made = []
            try:
                async with self.connect(made) as bad:
                    self.figures["connections"] += 1
                    released = asyncio.ensure_future(held.wait())
                    await asyncio.wait([bad.ended, released], timeout=self.left(), return_when=asyncio.FIRST_COMPLETED)
                    released.cancel()
                    self.saw(bad.ended.result() if bad.ended.done() else "still open")
            except ConnectionError:
                self.saw("handshake: " + await ending_of(made[0].ended, self.left()))

        tasks = []
        for _ in range(self.options.count):
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(0.01)
        await asyncio.wait(tasks, timeout=self.options.hold)
        held.set()
        await asyncio.gather(*tasks)

    async def flood(self):
        """First packets of handshakes from many addresses, none of which goes on: as if they were forged."""
        sockets, kinds = [], collections.Counter()
        for number in range(self.options.count):
            quic = QuicConnection(configuration=self.configuration())
            quic.connect((self.options.host, self.options.port), now=time.time())
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.setblocking(False)
            one.bind((f"127.{64 + number // 65_536}.{number // 256 % 256}.{1 + number % 255}", 0))
            for datagram, _ in quic.datagrams_to_send(now=time.time()):
                one.sendto(datagram, (self.options.host, self.options.port))
                self.figures["octets_sent"] += len(datagram)
            sockets.append(one)
            # Answers are read as they come: what a forged address would have been sent.
            if number % 16 == 15:
                await asyncio.sleep(0.01)
            if len(sockets) > 256:
                self.drain(sockets.pop(0), kinds)
        await asyncio.sleep(1)
        for one in sockets:
            self.drain(one, kinds)
        self.seen.update(kinds)

    def drain(self, one, kinds):
        is_first = True
        try:
            while True:
                datagram = one.recv(65_536)
                self.figures["octets_received"] += len(datagram)
                if is_first and datagram:
                    # RFC 9000 §17.2: the type of a long header is in its bits 4 and 5; 3 is Retry, 0 Initial.
                    kinds["retry" if datagram[0] & 0xF0 == 0xF0 else "handshake"] += 1
                    is_first = False
        except BlockingIOError:
            pass
        if is_first:
            kinds[TIMED_OUT] += 1
        one.close()

    async def noise(self):
        """Datagrams of random octets, some with the header of a first packet."""
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setblocking(False)
        for number in range(self.options.count):
            octets = bytearray(self.random.randbytes(self.random.randrange(1, 1_400)))
            if number % 2:
                octets[:6] = b"\xc3\x00\x00\x00\x01\x08"
                octets += bytes(max(0, 1_200 - len(octets)))
            try:
                one.sendto(octets, (self.options.host, self.options.port))
            except BlockingIOError:
                pass
            self.figures["octets_sent"] += len(octets)
            if number % 64 == 63:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.5)
        try:
            while True:
                self.figures["octets_received"] += len(one.recv(65_536))
                self.figures["answers"] += 1
        except BlockingIOError:
            pass
        one.close()


def frame(octets):
    return struct.pack(">I", len(octets)) + octets


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["identity", "garbage", "half", "second", "trickle", "slow_reader", "hold", "flood", "noise"]
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True, help="the domain, as the certificate of the node names it")
    parser.add_argument("--alpn", required=True)
    parser.add_argument("--ca", help="whom to believe; nobody is believed or asked without")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--hello", help="the first request, in hexadecimal; answered before anything bad is done")
    parser.add_argument("--request", help="a good request, in hexadecimal")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--octets", type=int, default=0)
    parser.add_argument("--announce", type=int, default=4 * 1024 * 1024)
    parser.add_argument("--hold", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="the end of all patience")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    attack = Attack(options)
    begun = time.monotonic()
    asyncio.run(getattr(attack, options.kind)())
    attack.figures["took_ms"] = int(1000 * (time.monotonic() - begun))
    print(json.dumps({"kind": options.kind, "endings": dict(sorted(attack.seen.items())), "figures": dict(attack.figures)}))


if __name__ == "__main__":
    main()

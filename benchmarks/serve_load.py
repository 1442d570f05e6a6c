"""`vqvae2-fast serve` under load: are all answers right, how long do they take, does memory grow?

    python benchmarks/serve_load.py                     # half a minute
    python benchmarks/serve_load.py --seconds 300       # for results that are reported

Starts a server of the pretrained emoji32 on loopback, and 64 clients that ask for a mixture of
everything that draws, encodes or decodes, waiting or streamed. A third of them leave early. Each
answer is compared, byte for byte, with what the library gave for the same request before the server
started. Then the same clients ask for nothing but new images, which gives the images per second to
compare with `draw_batch` in the same number of threads.

    python benchmarks/serve_load.py --seconds 300 --attack

Only orders new images, while a second process holds 1,000 connections with half a head, 200 with
slow bodies, and sends 100 bodies of 8 MiB at once, again and again. Fails if /healthz takes more
than 0.5 s (p99) or the server more than 600 MiB.

Server and clients share the machine. The exit code is 1 if an answer is wrong or lost.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from shared import measure
from shared.serve_cases import CASES, Case, cases, images_case

import vqvae2_fast as vq2
from vqvae2_fast.sampling import draw_batch
from vqvae2_fast.sampling.series import resolved_settings

MIB = 2**20


@dataclass
class Record:
    """What happened in a run."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    images: int = 0
    processor: float = 0.0  # seconds of the server
    memory: list[float] = field(default_factory=list)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of the mixed requests")
    parser.add_argument("--clients", type=measure.count, default=64)
    parser.add_argument("--leave", type=float, default=1 / 3, help="share that leaves early")
    parser.add_argument("--threads", type=measure.count, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", action="store_true", help="hold connections, send much")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds:g}")

    torch.set_num_threads(options.threads)
    print(measure.machine())
    pipeline = vq2.from_preset("emoji32")
    mixed = cases(pipeline)
    bare = bare_sampler(pipeline)
    plain = [images_case(pipeline, seed, 4, stream=False) for seed in range(16)]
    port = free_port()
    serve = f"serve --preset=emoji32 --port={port} --threads={options.threads} --quiet"
    server = subprocess.Popen([Path(sys.executable).with_name("vqvae2-fast"), *serve.split()])
    try:
        await ready(server, port)
        if options.attack:
            return await under_attack(server, port, plain, options)
        print(f"{options.clients} clients, {options.seconds:g} s of mixed requests")
        record = await run(server, port, mixed, options, options.seconds, options.leave)
        show(record)
        only = await run(server, port, plain, options, max(5, options.seconds / 10), 0)
        bare += bare_sampler(pipeline)
        rate = only.images / sum(only.seconds.pop("run"))
        each = 1000 * only.processor / only.images
        print("\n| new images alone | images a second | ms of processor time each |\n|---|---|---|")
        print(f"| server | {rate:.0f} | {each:.2f} |")
        own, cost = statistics.mean(bare[::2]), statistics.mean(bare[1::2])
        print(f"| draw_batch, before and after | {own:.0f} | {cost:.2f} |")
        print(f"| share | {rate / own:.2f} | {cost / each:.2f} |")
        faults = record.faults + only.faults
    finally:
        server.terminate()
        stopped = server.wait(70)
    for fault in faults[:20]:
        print(fault)
    print(f"the server stopped with exit code {stopped}")
    return 1 if faults or stopped not in (0, -signal.SIGTERM) else 0


async def under_attack(
    server: subprocess.Popen[bytes], port: int, asked: list[Case], options: argparse.Namespace
) -> int:
    """Prints what clients get while others attack the server; 1 if that is too little."""
    print(f"{options.clients} clients, {options.seconds:g} s under attack")
    attackers = multiprocessing.get_context("spawn").Process(target=attack, args=(port,))
    attackers.start()
    try:
        record, times = await asyncio.gather(
            run(server, port, asked, options, options.seconds, 0),
            asyncio.to_thread(healthz, port, options.seconds),
        )
    finally:
        attackers.kill()
    p50, p99 = (times[int(share * len(times))] for share in (0.5, 0.99))
    memory = max(record.memory)
    show(record)
    print(
        f"/healthz: {len(times)} times, p50 {p50:.3f} s, p99 {p99:.3f} s, at most {times[-1]:.3f}"
    )
    print(f"memory: at most {memory:.0f} MiB")
    for fault, count in Counter(record.faults).most_common(20):
        print(f"{count} x {fault}")
    return 1 if record.faults or p99 > 0.5 or memory > 600 or not record.images else 0


def healthz(port: int, seconds: float) -> list[float]:
    """How long /healthz takes on a connection of its own, five times a second, in order."""
    times, end = [], time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            times.append(time.monotonic() - begun)
        except (OSError, http.client.HTTPException):
            times.append(10.0)
        connection.close()
        time.sleep(0.2)
    return sorted(times)


def attack(port: int) -> None:
    """1,000 half heads, 200 slow bodies and 100 large bodies, until the process is killed."""
    head = b"POST /v1/complete HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    text = b'{"source": {"image": "' + b"A" * (8 * MIB - 64) + b'"}}'
    lists = b'{"known": [' + b"[0]," * (2 * MIB - 16) + b"0]}"

    async def attacker(begun: bytes, body: bytes | None = None) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(begun)
                if body is None:
                    while not writer.is_closing():
                        await asyncio.sleep(1)
                        writer.write(b"x")
                else:
                    writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
                    for start in range(0, len(body), 2**16):
                        writer.write(body[start : start + 2**16])
                        await writer.drain()
                    await reader.read(2**16)
                    writer.close()
            except OSError:
                pass  # being cut off is what attackers get
            await asyncio.sleep(1 if body is None else 10)

    async def attackers() -> None:
        await asyncio.gather(
            *(attacker(head + b"X: ") for _ in range(1000)),
            *(attacker(head + b"Content-Length: 1000000\r\n\r\n") for _ in range(200)),
            *(attacker(head, body) for body in (text, lists) for _ in range(50)),
        )

    asyncio.run(attackers())


def bare_sampler(pipeline: vq2.Pipeline) -> tuple[float, float]:
    """Images per second of `draw_batch` in batches of 64 under the settings of `images_case`, and
    milliseconds of processor time for each image."""
    settings = resolved_settings(pipeline, **pipeline.recommended)
    labels = torch.arange(64) % pipeline.num_classes
    rates, costs = [], []
    for _ in range(5):
        begun = time.perf_counter(), time.process_time()
        draw_batch(pipeline, range(64), settings, labels=labels)
        rates.append(64 / (time.perf_counter() - begun[0]))
        costs.append(1000 * (time.process_time() - begun[1]) / 64)
    return statistics.median(rates[1:]), statistics.median(costs[1:])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def ready(server: subprocess.Popen[bytes], port: int) -> None:
    connection = Connection(port)
    while server.poll() is None:
        try:
            status, _ = await connection.ask("GET", "/healthz")
        except OSError:
            await asyncio.sleep(0.1)
        else:
            assert status == 200
            connection.close()
            return
    raise SystemExit(f"the server ended with exit code {server.returncode}")


async def run(
    server: subprocess.Popen[bytes],
    port: int,
    asked: list[Case],
    options: argparse.Namespace,
    seconds: float,
    leave: float,
) -> Record:
    record, begun, before = Record(), time.monotonic(), processor_seconds(server)
    watching = asyncio.create_task(watch(server, record))
    await asyncio.gather(
        *(
            client(
                port, asked, random.Random(f"{options.seed} {n}"), begun + seconds, leave, record
            )
            for n in range(options.clients)
        )
    )
    record.seconds["run"] = [time.monotonic() - begun]
    record.processor = processor_seconds(server) - before
    watching.cancel()
    return record


def processor_seconds(server: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def watch(server: subprocess.Popen[bytes], record: Record) -> None:
    """Records the server's resident memory, MiB, twice a second."""
    while True:
        status = Path(f"/proc/{server.pid}/status").read_text()
        record.memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        await asyncio.sleep(0.5)


async def client(
    port: int,
    asked: list[Case],
    chance: random.Random,
    end: float,
    leave: float,
    record: Record,
) -> None:
    connection = Connection(port)
    while time.monotonic() < end:
        case = chance.choice(asked)
        patience = chance.uniform(0, 0.5) if chance.random() < leave else None
        begun = time.monotonic()
        try:
            asked_for = connection.ask("POST", case.path, case.body)
            status, answer = await asyncio.wait_for(asked_for, patience)
        except asyncio.TimeoutError:
            record.counts["left early"] += 1
            continue
        except (OSError, asyncio.IncompleteReadError) as error:
            record.faults.append(f"{case.name}: lost ({error!r})")
            continue
        if status == 429:
            record.counts["refused, asked again later"] += 1
            await asyncio.sleep(chance.uniform(0.1, 1))
            continue
        record.counts["answered"] += 1
        record.seconds.setdefault(case.name, []).append(time.monotonic() - begun)
        fault = f"status {status}" if status != 200 else case.fault(answer)
        if fault is None:
            record.images += case.images
        else:
            record.faults.append(f"{case.name}: {fault}")
    connection.close()


class Connection:
    """A client's connection to the server, which is closed when a request ends early and opened
    again for the next one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one request."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        reader, writer = self._streams
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            status = int(answer.split(b" ", 2)[1])
            if b"transfer-encoding: chunked" in answer.lower():
                return status, b"".join([part async for part in chunks(reader)])
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return status, await reader.readexactly(length)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def chunks(reader: asyncio.StreamReader) -> Any:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


def show(record: Record) -> None:
    seconds = sum(record.seconds.pop("run"))
    for name, count in sorted(record.counts.items()):
        print(f"{name}: {count}")
    print(f"wrong or lost: {len(record.faults)}")
    print(f"{record.images / seconds:.0f} images a second, without those nobody waited for")
    each = record.processor / max(1, record.counts["answered"])
    print(f"{1000 * each:.1f} ms of processor time an answer")
    if quarter := len(record.memory) // 4:
        early, late = (
            statistics.median(part)
            for part in (record.memory[quarter : 2 * quarter], record.memory[-quarter:])
        )
        print(f"memory: {early:.0f} MiB in the second quarter, {late:.0f} MiB in the last one")
    print("\n| request | answers | p50, s | p99, s |\n|---|---|---|---|")
    for name in CASES:
        times = sorted(record.seconds.get(name, []))
        if times:
            p50, p99 = (
                times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99)
            )
            print(f"| {name} | {len(times)} | {p50:.3f} | {p99:.3f} |")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

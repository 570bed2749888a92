"""A server under load: `python benchmarks/serve.py EMBEDDINGS --clients 32 --seconds 60`.

Starts `clipx serve` and asks it by text, by row with a filter, and for thumbnails. Prints requests
a second, the latencies, errors, and the memory of the server four times while it runs. Mapped
files, the shards of the corpus among them, are counted apart: they are as large as what was read,
and the system takes their memory back when it needs some.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from server_process import running_server  # type: ignore[import] beside this file

WORDS = "red blue green small large old new car house tree cat dog arrow flag star phone".split()  # noqa: SIM905


class Load:
    """What all clients have measured."""

    def __init__(self, address: str) -> None:
        self.address = urlsplit(address)
        self.lock = threading.Lock()
        self.seconds: dict[str, list[float]] = {"text": [], "row": [], "picture": []}
        self.statuses: Counter[int] = Counter()

    def run(self, number: int, end: float, index: str, num_rows: int) -> None:
        """One client, which asks again when it has its answer."""
        draw = random.Random(number)
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port)
        while time.perf_counter() < end:
            kind = draw.choices(list(self.seconds), [2, 1, 2])[0]
            row = draw.randrange(num_rows)
            start = time.perf_counter()
            if kind == "picture":
                connection.request("GET", f"/api/picture/{index}/{row}?size=256")
            else:
                term: dict[str, object] = {"text": " ".join(draw.choices(WORDS, k=4))}
                body: dict[str, object] = {"terms": [term], "k": 40}
                if kind == "row":
                    body |= {"terms": [{"row": row}], "where": f"width >= {draw.randrange(64)}"}
                connection.request("POST", "/api/search", json.dumps(body))
            response = connection.getresponse()
            response.read()
            with self.lock:
                self.seconds[kind].append(time.perf_counter() - start)
                self.statuses[response.status] += 1
        connection.close()


def memory_mib(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Resident memory of its own and of mapped files. Linux gives both in KiB."""
    sizes = {}
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            sizes[name] = int(value.split()[0]) / 1024
    return sizes["RssAnon"], sizes["RssFile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with running_server(arguments.folder) as (process, address):
        load = Load(address)
        connection = http.client.HTTPConnection(load.address.hostname or "", load.address.port)
        connection.request("GET", "/api/indices")
        index = json.loads(connection.getresponse().read())["indices"][0]
        start = time.perf_counter()
        end = start + arguments.seconds
        clients = [
            threading.Thread(target=load.run, args=(number, end, index["name"], index["num_rows"]))
            for number in range(arguments.clients)
        ]
        for client in clients:
            client.start()
        memory = []
        for quarter in range(1, 5):
            time.sleep(max(0, start + quarter * arguments.seconds / 4 - time.perf_counter()))
            memory.append(memory_mib(process))
        for client in clients:
            client.join()
        seconds = time.perf_counter() - start

    total = sum(load.statuses.values())
    print(f"{arguments.clients} clients, {seconds:.0f} s: {total:,} requests", end=", ")
    print(f"{total / seconds:.0f} a second, by status {dict(load.statuses)}")
    for kind, values in load.seconds.items():
        values.sort()
        median = 1000 * values[len(values) // 2]
        worst = 1000 * values[int(0.99 * len(values))]
        print(f"{kind}: {len(values):,}, p50 {median:.0f} ms, p99 {worst:.0f} ms")
    for quarter, (own, mapped) in enumerate(memory, start=1):
        print(f"after {quarter * seconds / 4:.0f} s: {own:.0f} MiB, and {mapped:.0f} of files")


if __name__ == "__main__":
    main()

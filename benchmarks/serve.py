"""How much `delineate serve` bears: requests a second by 1, 8, 32 clients, memory over 1,000 of them, silent sockets.

The server is a process of its own with the model that ships, asked over loopback. Clients are threads that ask again as
soon as they are answered. Wall times tell of a machine that may be shared, so the server's own computing time a request
is told beside them, and where it goes by the server's own metrics. Writes `benchmarks/results/serve.json`.
"""

import argparse
import http.client
import io
import json
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS = (1, 8, 32)
SILENT = 200
TOKEN = secrets.token_hex(16)
BOUNDARY = "delineate-benchmark"


class Server:
    """`delineate serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str):
        command = [sys.executable, "-m", "delineate", "serve", "--port", "0", "--json", "--quiet", "--rate", "1000000"]
        self.process = subprocess.Popen(
            [*command, "--results", str(folder), *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"DELINEATE_TOKENS": f"benchmark {TOKEN}"},
        )
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["url"].rpartition(":")[2])
        started = time.monotonic()
        while self.ask("GET", "/ready")[0] != 200:
            time.sleep(0.2)
        self.seconds_to_ready = time.monotonic() - started

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body of an answer, on a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        headers = {"authorization": f"Bearer {TOKEN}"}
        if body:
            headers["content-type"] = f"multipart/form-data; boundary={BOUNDARY}"
        client.request(method, path, body or None, headers)
        answer = client.getresponse()
        data = answer.read()
        client.close()
        return answer.status, data

    def cpu(self) -> float:
        """Seconds of computing so far."""
        after = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Memory now."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", told)[0]) / 1024

    def stages(self) -> dict[str, float]:
        """Seconds that went into each part of the work, by the server's metrics."""
        text = self.ask("GET", "/metrics")[1].decode()
        return {stage: float(v) for stage, v in re.findall(r'stage_seconds_sum\{stage="(\w+)"\} (\S+)', text)}

    def stop(self) -> float:
        """Seconds that it takes to end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0
        return time.monotonic() - started


def form(data: bytes, name: str, **fields: object) -> bytes:
    """A request's body."""
    lines = [f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    scan = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="scan"; filename="{name}"\r\n\r\n'
    return "".join(lines).encode() + scan.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def load(server: Server, body: bytes, clients: int, requests: int) -> dict[str, Any]:
    """So many requests, by so many clients at once."""
    left, lock, seconds, statuses = requests, threading.Lock(), [], []

    def client() -> None:
        nonlocal left
        while True:
            with lock:
                if left == 0:
                    return
                left -= 1
            started = time.monotonic()
            status, _ = server.ask("POST", "/api/segment", body)
            with lock:
                seconds.append(time.monotonic() - started)
                statuses.append(status)

    cpu, before, started = server.cpu(), server.stages(), time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, used, after = time.monotonic() - started, server.cpu() - cpu, server.stages()
    assert set(statuses) == {200}, statuses
    ordered = sorted(seconds)
    return {
        "clients": clients,
        "requests": requests,
        "per_second": round(requests / wall, 3),
        "p50_s": round(statistics.median(ordered), 3),
        "p95_s": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "server_cpu_s_a_request": round(used / requests, 4),
        "share_of_a_core": round(used / wall, 2),
        "stage_s_a_request": {name: round((after[name] - before[name]) / requests, 4) for name in after},
    }


def memory(server: Server, body: bytes, requests: int, clients: int) -> list[dict[str, float]]:
    """The server's memory after every hundred requests."""
    found = []
    for done in range(0, requests, 100):
        load(server, body, clients, min(100, requests - done))
        found.append({"requests": done + 100, "rss_mib": round(server.rss_mib(), 1)})
        print(found[-1], flush=True)
    return found


def silent(server: Server, body: bytes, requests: int) -> dict[str, Any]:
    """The same requests with and without 200 sockets that say nothing, or half of a request's head."""
    alone = load(server, body, 1, requests)
    with ExitStack() as held:
        for k in range(SILENT):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            if k % 2:
                client.sendall(b"POST /api/segment HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
        beside = load(server, body, 1, requests)
    return {
        "sockets": SILENT,
        "alone": alone,
        "beside": beside,
        "ratio_p50": round(beside["p50_s"] / alone["p50_s"], 2),
    }


def picture(side: int) -> bytes:
    """A small picture of some bright discs."""
    from PIL import Image

    y, x = np.mgrid[:side, :side]
    grey = sum(
        ((y - a) ** 2 + (x - b) ** 2 < (side / 9) ** 2) * 180 for a, b in ((side / 3, side / 4), (side / 2, side / 1.6))
    )
    made = io.BytesIO()
    Image.fromarray((grey + 20).astype(np.uint8)).save(made, "PNG")
    return made.getvalue()


def keep(result: Path, **told: Any) -> None:
    """Put figures into the file of results, beside those that are there; rows of a load replace their like."""
    known = json.loads(result.read_text()) if result.is_file() else {"load": []}
    for row in told.pop("load", ()):
        print(row, flush=True)
        known["load"] = [one for one in known["load"] if (one["scan"], one["clients"]) != (row["scan"], row["clients"])]
        known["load"].append(row)
    known |= told
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(known, indent=2) + "\n")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("small", "ct", "silent", "memory"), default=["small", "silent"])
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS)
    parser.add_argument("--requests", type=int, default=64, help="of the small picture, for each number of clients")
    parser.add_argument("--ct-requests", type=int, default=16, help="of the CT that ships, for each")
    parser.add_argument("--memory-requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/serve.json"))
    asked = parser.parse_args()

    from delineate.samples import sample

    small = form(picture(64), "small.png", prompt="nuclei", n=2)
    (ct,) = sample("ct").images
    loads = {"small": ("64 x 64", small, asked.requests)}
    loads["ct"] = ("CT", form(ct.read_bytes(), ct.name, prompt="liver", n=2, modality="CT"), asked.ct_requests)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--threads", str(asked.threads), "--waiting", "64", "--minutes", "600")
        about = {"threads": asked.threads, "cores": len(os.sched_getaffinity(0))}
        keep(asked.result, **about, seconds_to_ready=round(server.seconds_to_ready, 2))
        server.ask("POST", "/api/segment", small)  # the first one imports what the others find imported
        for part in asked.parts:
            if part == "silent":
                keep(asked.result, silent=silent(server, small, max(1, asked.requests // 4)))
            elif part == "memory":
                rows = memory(server, small, asked.memory_requests, 4)
                keep(asked.result, memory=rows, rss_last_to_first=round(rows[-1]["rss_mib"] / rows[0]["rss_mib"], 3))
            else:
                name, body, most = loads[part]
                for clients in asked.clients:
                    row = load(server, body, clients, max(1, most // 4) if clients == 1 else max(clients, most))
                    keep(asked.result, load=[{"scan": name, **row}])
        keep(asked.result, seconds_to_end=round(server.stop(), 2))


if __name__ == "__main__":
    main()

"""Counts of requests, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping


class Counters:
    """Requests by route and status, with their seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()

    def add(self, route: str, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[route, status] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]

    def text(self, values: Mapping[str, float]) -> str:
        """values: further numbers, by name"""
        with self._lock:
            requests = sorted(self._requests.items())
            seconds = sorted(self._seconds.items())
        lines = ["# TYPE clipx_requests_total counter"]
        for (route, status), count in requests:
            lines.append(f'clipx_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE clipx_request_seconds_total counter")
        for route, total in seconds:
            lines.append(f'clipx_request_seconds_total{{route="{route}"}} {total:.6f}')
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE clipx_{name} {kind}")
            lines.append(f"clipx_{name} {value}")
        return "\n".join(lines) + "\n"

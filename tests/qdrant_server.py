"""The routes of a Qdrant server that clipx uses, around the engine of Qdrant (qdrant-edge-py).

The server itself is in no package registry. Bodies and answers are those of Qdrant's REST API as
its client sends and reads them; storage, filters, quantization and search are Qdrant's own.

    python qdrant_server.py FOLDER    # prints its port; FOLDER keeps the collections
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import qdrant_edge as edge

QUANTIZED = {
    "scalar": lambda value: edge.ScalarQuantizationConfig(
        edge.ScalarType.Int8, quantile=value["quantile"], always_ram=value["always_ram"]
    ),
    "binary": lambda value: edge.BinaryQuantizationConfig(
        always_ram=value["always_ram"],
        query_encoding={"scalar8bits": edge.BinaryQuantizationQueryEncoding.Scalar8Bits}[
            value["query_encoding"]
        ],
    ),
}


class Collection:
    def __init__(self, folder: Path, body: dict[str, Any] | None = None) -> None:
        self.about = folder.with_suffix(".json")
        if body is None:
            self.body = json.loads(self.about.read_text())
            self.shard = edge.EdgeShard.load(str(folder))
            return
        self.body = body
        quantization = None
        for name, value in (body.get("quantization_config") or {}).items():
            quantization = QUANTIZED[name](value)
        vectors = body["vectors"]
        datatypes = edge.VectorStorageDatatype
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(
                vectors["size"],
                {"Dot": edge.Distance.Dot}[vectors["distance"]],
                on_disk=vectors["on_disk"],
                datatype={"float16": datatypes.Float16, "float32": datatypes.Float32}[
                    vectors["datatype"]
                ],
            ),
            on_disk_payload=body["on_disk_payload"],
            quantization_config=quantization,
        )
        folder.mkdir(parents=True)
        self.shard = edge.EdgeShard.create(str(folder), config)
        self.write()

    def write(self) -> None:
        self.about.write_text(json.dumps(self.body))

    def info(self) -> dict[str, Any]:
        config = {
            "params": {"vectors": self.body["vectors"]},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 5},
            "quantization_config": self.body.get("quantization_config"),
            "metadata": self.body.get("metadata"),
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "config": config,
            "payload_schema": {},
        }

    def upsert(self, batch: dict[str, Any]) -> None:
        rows = zip(batch["ids"], batch["vectors"], batch["payloads"], strict=True)
        points = [edge.Point(row, vector, payload) for row, vector, payload in rows]
        self.shard.update(edge.UpdateOperation.upsert_points(points))
        self.shard.flush()

    def query(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        query: Any = body["query"]
        settings = None
        if "sample" in query:
            query = edge.Sample.Random
        else:
            query = edge.Query.Nearest(query if isinstance(query, list) else query["nearest"])
            settings = params(body.get("params") or {})
        request = edge.QueryRequest(
            limit=body["limit"],
            query=query,
            filter=filters(body.get("filter")),
            with_payload=body["with_payload"],
            params=settings,
        )
        points = self.shard.query(request)
        return [
            {"id": point.id, "version": 0, "score": point.score, "payload": point.payload}
            for point in points
        ]

    def retrieve(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        what = (body.get("with_payload", False), body.get("with_vector", False))
        records = self.shard.retrieve(body["ids"], *what)
        return [
            {"id": record.id, "payload": record.payload, "vector": record.vector}
            for record in records
        ]


def params(body: dict[str, Any]) -> edge.SearchParams:
    quantization = None
    if body.get("quantization"):
        values = body["quantization"]
        quantization = edge.QuantizationSearchParams(
            rescore=values["rescore"], oversampling=values["oversampling"]
        )
    return edge.SearchParams(exact=bool(body.get("exact")), quantization=quantization)


def filters(body: dict[str, Any] | None) -> edge.Filter | None:
    if body is None:
        return None
    must = [condition(each) for each in body.get("must") or []]
    must_not = [condition(each) for each in body.get("must_not") or []]
    return edge.Filter(must=must, must_not=must_not)


def condition(body: dict[str, Any]) -> Any:
    if "has_id" in body:
        return edge.HasIdCondition(set(body["has_id"]))
    if "is_empty" in body:
        return edge.IsEmptyCondition(body["is_empty"]["key"])
    match = body.get("match")
    if match is None:
        bounds = {name: value for name, value in body["range"].items() if value is not None}
        return edge.FieldCondition(body["key"], range=edge.RangeFloat(**bounds))
    if "substring" in match:
        return edge.FieldCondition(body["key"], match=edge.MatchSubstring(match["substring"]))
    return edge.FieldCondition(body["key"], match=edge.MatchValue(match["value"]))


@dataclass
class Faults:
    """What the next `count` requests meet: a status with a body, silence for `seconds`, or a
    connection that is closed."""

    count: int = 0
    status: int = 500
    body: bytes = b'{"status": {"error": "out of memory"}}'
    seconds: float = 0
    closes: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, *, port: int = 0, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        self.key = key
        self.faults = Faults()
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.collections: dict[str, Collection] = {}
        for about in folder.glob("*.json"):
            self.collections[about.stem] = Collection(about.with_suffix(""))

    def url(self, collection: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{collection}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length) or "{}")
        path = urlsplit(self.path).path
        server = self.server
        with server.lock:
            server.requests.append(f"{self.command} {path}")
            faults = server.faults
            if faults.count > 0:
                faults.count -= 1
                self.fail(faults)
                return
            if server.key is not None and self.headers.get("api-key") != server.key:
                self.answer(401, b"Must provide an API key")
                return
            try:
                result = route(server, self.command, path.split("/")[2:], body)
            except KeyError as error:
                text = f"Not found: Collection {error} doesn't exist!"
                self.answer(404, json.dumps({"status": {"error": text}}).encode())
                return
            except edge_errors as error:
                self.answer(400, json.dumps({"status": {"error": str(error)}}).encode())
                return
        answer = {"result": result, "status": "ok", "time": 0.001}
        self.answer(200, json.dumps(answer).encode())

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_request

    def fail(self, faults: Faults) -> None:
        if faults.seconds:
            time.sleep(faults.seconds)
        if faults.closes or faults.seconds:
            self.close_connection = True
            return
        self.answer(faults.status, faults.body, faults.headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


edge_errors = (ValueError, RuntimeError, TypeError)


def route(server: Server, method: str, path: list[str], body: dict[str, Any]) -> Any:
    name, *rest = path
    done = {"operation_id": 1, "status": "completed"}
    match (method, *rest):
        case ("GET", "exists"):
            return {"exists": name in server.collections}
        case ("PUT",):
            server.collections[name] = Collection(server.folder / name, body)
            return True
    collection = server.collections[name]
    match (method, *rest):
        case ("GET",):
            return collection.info()
        case ("PATCH",):
            collection.body.setdefault("metadata", {}).update(body["metadata"])
            collection.write()
            return True
        case ("PUT", "points"):
            collection.upsert(body["batch"])
            return done
        case ("POST", "points"):
            return collection.retrieve(body)
        case ("POST", "points", "query"):
            return {"points": collection.query(body)}
        case ("POST", "points", "count"):
            request = edge.CountRequest(exact=True, filter=filters(body.get("filter")))
            return {"count": collection.shard.count(request)}
        case ("POST", "points", "delete"):
            collection.shard.update(edge.UpdateOperation.delete_points(body["points"]))
            collection.shard.flush()
            return done
    raise ValueError(f"no such route: {method} {path}")


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), port=int(sys.argv[2])) as process:
        print(process.server_address[1], flush=True)
        process.serve_forever()

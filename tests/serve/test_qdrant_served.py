"""A collection of Qdrant is served as its folder is, and rows that were removed are not."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import served
from fastapi.testclient import TestClient
from qdrant_server import Faults, Server

from clipx import cli
from clipx.serve.app import build_app
from clipx.serve.collection import open_collections


def test_a_collection_is_served_with_pictures(
    folder: Path, client: TestClient, tmp_path: Path
) -> None:
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = server.url("drawings")
        cli.main(["index", str(folder), "--to", url])
        app = build_app(open_collections([url]))
        with TestClient(app, base_url=served.ADDRESS) as remote:
            query = {"terms": [{"text": "picture 3"}, {"row": 7}], "k": 20, "where": "price > 9"}
            expected = client.post("/api/search", json=query).json()
            found = remote.post("/api/search", json=query).json()
            assert [hit["metadata"] for hit in found["hits"]] == [
                hit["metadata"] for hit in expected["hits"]
            ]
            assert found["has_more"]
            path = "/api/picture/drawings/5?size=64"
            assert remote.get(path).content == client.get(path).content
            assert remote.get("/api/picture/drawings/90").status_code == 404
            (about,) = remote.get("/api/indices").json()["indices"]
            assert about["index"] == {"kind": "qdrant"}
            (there,) = client.get("/api/indices").json()["indices"]
            assert about["columns"] == there["columns"]
            knn = {"text": "picture 3", "num_images": 3, "num_result_ids": 5}
            assert [each["id"] for each in remote.post("/knn-service", json=knn).json()] == [
                each["id"] for each in client.post("/knn-service", json=knn).json()
            ]
            server.faults = Faults(count=100)
            response = remote.post("/api/search", json=query)
            assert response.status_code == 502
            assert "127.0.0.1" not in response.text
        server.shutdown()


def test_a_removed_row_is_neither_found_nor_shown(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "drawings"
    shutil.copytree(folder, copy)
    (tmp_path / "keys.txt").write_text("k05\n")
    cli.main(["index", str(copy), "--remove", str(tmp_path / "keys.txt")])
    with served.client(copy) as client:
        query = {"terms": [{"text": "picture 5"}], "k": 90}
        rows = [hit["row"] for hit in client.post("/api/search", json=query).json()["hits"]]
        assert sorted(rows) == [row for row in range(served.NUM_SAMPLES) if row != 5]
        captions = query | {"modality": "text"}
        rows = [hit["row"] for hit in client.post("/api/search", json=captions).json()["hits"]]
        assert 5 not in rows
        response = client.get("/api/picture/drawings/5")
        assert response.status_code == 404
        assert "row 5 of drawings was removed" in response.text
        some = client.post("/metadata", json={"ids": [4, 5, 6]}).json()
        assert [each["id"] for each in some] == [4, 6], "the page asks for rows by their numbers"
        likes = {"terms": [{"row": 5}], "k": 3}
        assert client.post("/api/search", json=likes).status_code == 404

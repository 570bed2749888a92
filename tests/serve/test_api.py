"""The JSON API answers as the index and the model do in Python."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import served
import torch
from fastapi.testclient import TestClient
from PIL import Image
from samples import picture, png

import clipx
from clipx import cli
from clipx.search.query import Index
from clipx.serve.app import build_app
from clipx.serve.collection import open_collections


def search(client: TestClient, *terms: dict[str, Any], **settings: Any) -> dict[str, Any]:
    response = client.post("/api/search", json={"terms": terms, **settings})
    assert response.status_code == 200, response.text
    return response.json()


def rows(answer: dict[str, Any]) -> list[int]:
    return [hit["row"] for hit in answer["hits"]]


def upload(client: TestClient, path: str, query: dict[str, Any], *pictures: bytes) -> Any:
    files = [("picture", (f"{n}.png", data, "image/png")) for n, data in enumerate(pictures)]
    return client.post(path, data={"query": json.dumps(query)}, files=files)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_text_finds_what_the_index_finds(client: TestClient, index: Index) -> None:
    answer = search(client, {"text": "picture 3"}, k=7)
    hits = index.search(text="picture 3", k=7)
    assert rows(answer) == [hit.row for hit in hits]
    for found, hit in zip(answer["hits"], hits, strict=True):
        assert found["score"] == pytest.approx(hit.score, abs=1e-5)
        assert found["metadata"]["key"] == hit.metadata["key"]


def test_texts_pictures_and_rows_are_added_with_their_signs(
    client: TestClient, index: Index
) -> None:
    terms = [
        {"sign": 1, "text": "picture 3"},
        {"sign": -1, "picture": 1},
        {"sign": 1, "row": 5},
        {"sign": 1, "picture": 0},
    ]
    first, second = picture(140), picture(141)
    response = upload(
        client, "/api/search", {"terms": terms, "k": 90}, encoded(first), encoded(second)
    )
    text = index.encoder.encode_text("picture 3")[0]
    near = index.encoder.encode_image(first)[0]
    far = index.encoder.encode_image(second)[0]
    vector = text - far + torch.from_numpy(index.rows[5].copy()) + near
    assert rows(response.json()) == [hit.row for hit in index.search(vector=vector, k=90)]


def test_pages_follow_one_another_without_gaps(client: TestClient) -> None:
    whole = rows(search(client, {"text": "a cat"}, k=90))
    pages: list[int] = []
    has_more = True
    while has_more:
        page = search(client, {"text": "a cat"}, k=17, offset=len(pages))
        pages += rows(page)
        has_more = page["has_more"]
    assert pages == whole
    assert sorted(whole) == list(range(90))


def test_filters_and_captions_are_those_of_the_index(
    client: TestClient, folder: Any, index: Index
) -> None:
    answer = search(client, {"text": "a cat"}, where="price < 9 and shop = here")
    assert {hit["metadata"]["price"] for hit in answer["hits"]} == {1, 3, 5, 7}
    answer = search(client, {"text": "picture 11"}, k=1, modality="text")
    assert answer["hits"][0]["metadata"]["caption"] == "picture 11"


def test_more_like_a_row_finds_the_row_itself_first(client: TestClient) -> None:
    assert rows(search(client, {"row": 17}, k=1)) == [17]


def test_nan_in_the_metadata_is_null(client: TestClient) -> None:
    answer = search(client, {"row": 3}, k=1)
    assert answer["hits"][0]["metadata"]["score"] is None


def test_a_picture_is_that_of_the_corpus_and_bounded(client: TestClient) -> None:
    for size, expected in ((256, (20, 16)), (16, (16, 13))):
        response = client.get(f"/api/picture/drawings/8?size={size}")
        assert response.headers["content-type"] in ("image/webp", "image/jpeg")
        image = Image.open(io.BytesIO(response.content))
        assert image.size == expected, "never enlarged"
    large = client.get("/api/picture/drawings/8").content
    decoded = Image.open(io.BytesIO(large)).convert("RGB").resize((4, 4))
    original = picture(8).convert("RGB").resize((4, 4))
    difference = torch.tensor(list(decoded.tobytes())) - torch.tensor(list(original.tobytes()))
    assert difference.abs().float().mean() < 12


def test_zero_shot_has_the_probabilities_of_the_model(client: TestClient, index: Index) -> None:
    names = ["cat", "dog", "a red car"]
    data = png(150)
    query = {"names": names, "prompts": ["a photo of a {c}", "{c}"]}
    response = upload(client, "/api/classify", query, data)
    image = Image.open(io.BytesIO(data))
    expected = clipx.zero_shot(index.encoder, image, names, ["a photo of a {c}", "{c}"])[0]
    classes = response.json()["classes"]
    assert [entry["name"] for entry in classes] == names
    assert [entry["probability"] for entry in classes] == pytest.approx(expected.tolist(), abs=1e-5)
    by_row = client.post("/api/classify", json={"names": names, "row": 4}).json()["classes"]
    assert sum(entry["probability"] for entry in by_row) == pytest.approx(1)


def test_indices_are_described_for_the_page(client: TestClient) -> None:
    (described,) = client.get("/api/indices").json()["indices"]
    assert (described["name"], described["num_rows"]) == ("drawings", 90)
    assert described["modalities"] == ["image", "text"]
    columns = {column["name"]: column for column in described["columns"]}
    assert columns["price"] == {"name": "price", "type": "int64", "examples": []}
    assert sorted(columns["shop"]["examples"]) == ["There", "here"]
    assert client.get("/api/health").json() == {"status": "ok", "indices": ["drawings"]}


def test_several_folders_are_served_and_one_may_have_no_captions(
    folder: Path, index: Index, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for n in range(4):
        (tmp_path / f"pictures/{n}.png").write_bytes(png(n))
    out = tmp_path / "drawings"
    model = index.manifest.model
    cli.main(["embed", model, str(tmp_path / "pictures"), "--out", str(out), "--precision", "fp32"])
    first, second = open_collections([folder, out])
    assert (first.name, second.name) == ("drawings", "drawings-2")
    assert first.batcher is second.batcher, "they have the same model"
    with TestClient(build_app([first, second]), base_url=served.ADDRESS) as client:
        described = client.get("/api/indices").json()["indices"]
        assert [each["modalities"] for each in described] == [["image", "text"], ["image"]]
        answer = search(client, {"row": 2}, index="drawings-2", k=1)
        assert answer["hits"][0]["metadata"]["key"] == "2"
        assert "caption" not in answer["hits"][0]["metadata"]
        assert client.get("/api/picture/drawings-2/3").status_code == 200
        body = {"terms": [{"text": "a"}], "index": "drawings-2", "modality": "text"}
        response = client.post("/api/search", json=body)
        assert response.status_code == 400
        assert "drawings-2 has no captions to search" in response.json()["error"]

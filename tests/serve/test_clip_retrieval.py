"""clip-retrieval's routes: the shapes that its client and front end know."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from samples import png
from torch.nn import functional as F

from clipx.search.query import Index
from clipx.serve.clip_retrieval import distinct


def ask(client: TestClient, **inputs: Any) -> list[dict[str, Any]]:
    """As its ClipClient does: all fields, null where unused, and no content type."""
    body = dict.fromkeys(("text", "image", "image_url", "embedding_input"))
    body |= {"deduplicate": False, "use_safety_model": True, "use_violence_detector": True}
    body |= {"indice_name": "drawings", "use_mclip": False, "aesthetic_score": 9}
    body |= {"aesthetic_weight": 0.5, "modality": "image", "num_images": 5, "num_result_ids": 5}
    body |= {"verbose": False} | inputs
    response = client.post("/knn-service", content=json.dumps(body))
    assert response.status_code == 200, response.text
    return response.json()


def test_text_image_and_embedding_find_what_the_index_finds(
    client: TestClient, index: Index, tmp_path: Any
) -> None:
    (tmp_path / "picture.png").write_bytes(png(150))
    text = index.encoder.encode_text("a cat")[0]
    image = index.encoder.encode_image(tmp_path / "picture.png")[0]
    queries = [
        ({"text": "a cat"}, text),
        ({"image": base64.b64encode(png(150)).decode()}, image),
        ({"embedding_input": (1e3 * text).tolist()}, text),
    ]
    for inputs, vector in queries:
        results = ask(client, **inputs)
        hits = index.search(vector=vector, k=5)
        assert [result["id"] for result in results] == [hit.row for hit in hits]
        for result, hit in zip(results, hits, strict=True):
            assert result["similarity"] == pytest.approx(hit.score, abs=1e-5)
            assert result["caption"] == hit.metadata["caption"]
            assert client.get(result["url"]).headers["content-type"].startswith("image/")


def test_only_the_first_results_have_metadata(client: TestClient) -> None:
    results = ask(client, text="a cat", num_images=2, num_result_ids=6)
    assert len(results) == 6
    assert all("key" in result for result in results[:2])
    assert all(set(result) == {"id", "similarity"} for result in results[2:])


def test_captions_are_a_modality(client: TestClient) -> None:
    results = ask(client, text="picture 11", modality="text", num_images=1, num_result_ids=1)
    assert results[0]["caption"] == "picture 11"


def test_duplicates_are_left_out_and_the_best_stays() -> None:
    torch.manual_seed(0)
    base = F.normalize(torch.randn(4, 64), dim=1)
    near = F.normalize(base + 0.01 * torch.randn(4, 64), dim=1)
    vectors = torch.cat([base[:2], near[:1], base[2:], near[1:]])
    assert distinct(vectors) == [0, 1, 3, 4]


def test_deduplicated_results_are_no_near_duplicates(client: TestClient, index: Index) -> None:
    results = ask(client, text="a cat", num_result_ids=90, num_images=90, deduplicate=True)
    kept = torch.from_numpy(index.rows[[result["id"] for result in results]])
    similarities = kept @ kept.T - 2 * torch.eye(len(kept))
    assert similarities.max() < 0.94
    assert results[0]["id"] == index.search(text="a cat", k=1)[0].row


def test_metadata_is_given_by_id(client: TestClient) -> None:
    body = {"ids": [7, 2], "indice_name": "drawings"}
    answer = client.post("/metadata", content=json.dumps(body)).json()
    assert [entry["id"] for entry in answer] == [7, 2]
    assert answer[0]["metadata"]["key"] == "k07"
    assert client.post("/metadata", json={"ids": [], "indice_name": "drawings"}).json() == []


def test_indices_and_metrics_are_listed(client: TestClient) -> None:
    assert client.get("/indices-list").json() == ["drawings"]
    client.get("/api/health")
    text = client.get("/metrics").text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in (line.split(" ") for line in lines)}
    assert values['clipx_requests_total{route="/api/health",status="200"}'] >= 1
    assert values["clipx_index_rows"] == 90


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ({}, 422, "give text, image or embedding_input"),
        ({"image_url": "http://127.0.0.1/secret"}, 400, "this server fetches nothing"),
        ({"embedding_input": [1.0]}, 422, "embedding_input has 1 numbers, not 16"),
        ({"embedding_input": [0.0] * 16}, 422, "embedding_input is zero"),
        ({"image": "?"}, 422, "the image is no base64"),
        ({"image": "AAAA"}, 422, "the picture cannot be used"),
        ({"text": "a", "indice_name": "../other"}, 404, "there is no index of this name"),
        ({"text": "a", "num_result_ids": 10**6}, 422, "1,000,000 results are more than the 5,000"),
        ({"text": "a", "num_images": "many"}, 422, "num_images: Input should be a valid integer"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    client: TestClient, inputs: dict[str, Any], status: int, message: str
) -> None:
    response = client.post("/knn-service", json=inputs)
    assert response.status_code == status
    assert message in response.json()["error"]

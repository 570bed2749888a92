"""The routes of clip-retrieval's `clip back`, so that its clients and front end work here.

Its options of other models (use_mclip, aesthetic_score, aesthetic_weight, use_safety_model,
use_violence_detector) are accepted and without effect. `image_url` is refused: this server fetches
nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, FiniteFloat
from starlette.responses import Response
from torch import Tensor
from torch.nn import functional as F

from clipx.serve.bodies import check_texts, decode_base64, fitted_picture, read_request
from clipx.serve.collection import Collection, QueryTerm
from clipx.serve.limits import Refused
from clipx.serve.service import Service, in_thread, json_response

DUPLICATE = 0.94  # cosine similarity of two results of which one is left out, as in clip-retrieval
Row = Annotated[int, Field(ge=0, lt=2**63)]


class KnnBody(BaseModel):
    """Names are clip-retrieval's. num_images: results with metadata; num_result_ids: of all"""

    text: str | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[FiniteFloat] | None = None
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(default=100, ge=1)
    num_result_ids: int = Field(default=100, ge=1)
    indice_name: str | None = None
    deduplicate: bool = False


class MetadataBody(BaseModel):
    ids: list[Row]
    indice_name: str | None = None


def add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/knn-service")
    async def knn(request: Request) -> Response:
        async with service.queries.slot():
            body, _ = await read_request(request, KnnBody, service.limits)
            base = str(request.base_url)
            return json_response(await in_thread(_knn, body, service, base))

    @app.post("/metadata")
    async def metadata(request: Request) -> Response:
        async with service.queries.slot():
            body, _ = await read_request(request, MetadataBody, service.limits)
            return json_response(await in_thread(_metadata, body, service, str(request.base_url)))

    @app.get("/indices-list")
    async def indices_list() -> Response:
        return json_response(list(service.collections))

    @app.get("/metrics")
    async def metrics() -> Response:
        text = service.counters.text(service.numbers())
        return Response(text, media_type="text/plain; version=0.0.4")


def _knn(body: KnnBody, service: Service, base: str) -> list[dict[str, Any]]:
    """Raises Refused and UserError."""
    collection = service.collection(body.indice_name)
    service.check_count(body.num_result_ids)
    vector = _query_vector(body, collection, service)
    found = collection.nearest(vector, body.num_result_ids, modality=body.modality)
    if body.deduplicate:
        index = collection.images if body.modality == "image" else collection.texts
        assert index is not None, "it was searched"
        vectors = index.store.vectors([row for row, _ in found])
        found = [found[place] for place in distinct(vectors)]
    rows = [row for row, _ in found]
    shown = _metadata_of(collection, rows[: body.num_images], base)
    results = []
    for place, (row, score) in enumerate(found):
        result = shown[place] if place < body.num_images else {}
        results.append(result | {"id": row, "similarity": score})
    return results


def _query_vector(body: KnnBody, collection: Collection, service: Service) -> Tensor:
    """(D,) of unit norm, of the first input that is given, in clip-retrieval's order. Raises
    Refused and UserError."""
    if body.text:
        check_texts([body.text], service.limits)
        return collection.embed([QueryTerm(1, text=body.text)])
    if body.image is not None:
        data = decode_base64(body.image)
        pixels = fitted_picture(data, collection, service.limits)
        return collection.embed([QueryTerm(1, pixels=pixels)])
    if body.image_url is not None:
        raise Refused(400, "image_url is not supported: this server fetches nothing; send `image`")
    if body.embedding_input is None:
        raise Refused(422, "give text, image or embedding_input")
    width = collection.images.manifest.embed_dim
    if len(body.embedding_input) != width:
        raise Refused(422, f"embedding_input has {len(body.embedding_input)} numbers, not {width}")
    # In float64: the square of a number that float32 has may be none that it has.
    vector = torch.tensor(body.embedding_input, dtype=torch.float64)
    largest = vector.abs().max()
    if largest == 0:
        raise Refused(422, "embedding_input is zero")
    return F.normalize(vector / largest, dim=0).float()


def distinct(vectors: Tensor) -> list[int]:
    """Numbers of the rows that are no near-duplicate of one before them.

    vectors: (N, D) of unit norm, best result first
    """
    kept: list[int] = []
    best = torch.full((len(vectors),), -1.0)
    for number in range(len(vectors)):
        if best[number] < DUPLICATE:
            kept.append(number)
            similarities = vectors[number:] @ vectors[number]
            best[number:] = torch.maximum(best[number:], similarities)
    return kept


def _metadata(body: MetadataBody, service: Service, base: str) -> list[dict[str, Any]]:
    """Raises Refused."""
    collection = service.collection(body.indice_name)
    service.check_count(len(body.ids))
    # Without removed ones, of which the page may ask when it shows some of the rows.
    rows = collection.kept(body.ids)
    found = _metadata_of(collection, rows, base)
    results = []
    for row, metadata in zip(rows, found, strict=True):
        results.append({"id": row, "metadata": metadata})
    return results


def _metadata_of(collection: Collection, rows: list[int], base: str) -> list[dict[str, Any]]:
    """Metadata of rows. Its clients show the picture at `url`: ours, unless the corpus has one.
    Raises UserError."""
    found = []
    for row, metadata in zip(rows, collection.images.store.metadata(rows), strict=True):
        address = f"{base}api/picture/{quote(collection.name, safe='')}/{row}?size=512"
        found.append({"url": address} | metadata)
    return found

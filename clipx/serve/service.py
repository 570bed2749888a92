"""What routes share: the collections, the limits, and the answers that several routes give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from clipx import strict_json
from clipx.evaluators.classifier import classifier
from clipx.search.query import Hit
from clipx.serve.bodies import (
    ClassifyBody,
    SearchBody,
    TermBody,
    check_texts,
    fitted_picture,
)
from clipx.serve.collection import Collection, QueryTerm
from clipx.serve.counters import Counters
from clipx.serve.limits import Admission, Limits, Refused

P = ParamSpec("P")
T = TypeVar("T")
THUMBNAILS = 4  # that are made at a time, apart from queries, since a page asks for forty


class Service:
    """collections: at least one, the first of which is meant where a request names none"""

    def __init__(self, collections: Sequence[Collection], limits: Limits) -> None:
        assert collections, "the command line asks for a folder"
        self.collections = {collection.name: collection for collection in collections}
        self.limits = limits
        self.counters = Counters()
        self.queries = Admission(limits.active, limits.waiting)
        self.thumbnails = Admission(THUMBNAILS, 4 * limits.waiting)
        # Folders of one model share its batches.
        self.batchers = list({id(each.batcher): each.batcher for each in collections}.values())

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        for batcher in self.batchers:
            batcher.start()
        yield
        for batcher in self.batchers:
            await run_in_threadpool(batcher.close)

    def collection(self, name: str | None) -> Collection:
        """Raises Refused."""
        if name is None:
            return next(iter(self.collections.values()))
        if name not in self.collections:
            known = ", ".join(self.collections)
            raise Refused(404, f"there is no index of this name; there are {known}")
        return self.collections[name]

    def terms(
        self, bodies: Sequence[TermBody], pictures: Sequence[bytes], collection: Collection
    ) -> list[QueryTerm]:
        """Raises Refused."""
        if len(bodies) > self.limits.terms:
            raise Refused(422, f"a query has {self.limits.terms} parts at most")
        terms = []
        for body in bodies:
            num_kinds = [body.text, body.row, body.picture].count(None)
            if num_kinds != 2:
                raise Refused(422, "each term needs one of text, row and picture")
            pixels = None
            if body.text is not None:
                check_texts([body.text], self.limits)
            if body.picture is not None:
                if body.picture >= len(pictures):
                    raise Refused(
                        422, f"picture {body.picture} is not among the {len(pictures)} uploaded"
                    )
                data = pictures[body.picture]
                pixels = fitted_picture(data, collection, self.limits)
            terms.append(QueryTerm(body.sign, body.text, body.row, pixels))
        return terms

    def check_count(self, count: int) -> None:
        """Raises Refused."""
        if count > self.limits.results:
            raise Refused(422, f"{count:,} results are more than the {self.limits.results:,}")

    def search(self, body: SearchBody, pictures: Sequence[bytes]) -> dict[str, Any]:
        """Raises Refused and UserError."""
        collection = self.collection(body.index)
        last = body.offset + body.k
        self.check_count(last)
        where = body.where.strip() if body.where else None
        if where:
            check_texts([where], self.limits)
        vector = collection.embed(self.terms(body.terms, pictures, collection))
        hits, has_more = collection.page(
            vector, body.k, body.offset, where=where or None, modality=body.modality
        )
        return {
            "index": collection.name,
            "hits": [hit_record(hit) for hit in hits],
            "has_more": has_more and last < self.limits.results,
        }

    def classify(self, body: ClassifyBody, pictures: Sequence[bytes]) -> dict[str, Any]:
        """Probabilities of the classes in the order of their names, at the temperature of the
        model. Raises Refused and UserError."""
        collection = self.collection(body.index)
        if (body.row is not None) + len(pictures) != 1:
            raise Refused(422, "give one picture, or the row of one")
        if len(body.names) > self.limits.class_names:
            raise Refused(422, f"at most {self.limits.class_names} class names are taken")
        check_texts(body.names, self.limits)
        check_texts(body.prompts, self.limits)
        batcher = collection.batcher
        if body.row is not None:
            image = collection.image_vector(body.row)
        else:
            image = batcher.encode_image([fitted_picture(pictures[0], collection, self.limits)])[0]
        weights = classifier(batcher, body.names, body.prompts)
        probabilities = (collection.images.manifest.scale * (weights @ image)).softmax(0)
        classes = []
        for name, probability in zip(body.names, probabilities.tolist(), strict=True):
            classes.append({"name": name, "probability": probability})
        return {"index": collection.name, "classes": classes}

    def numbers(self) -> dict[str, float]:
        """For /metrics."""
        return {
            "requests_active": self.queries.num_active,
            "requests_waiting": self.queries.num_waiting,
            "embedded_batches_total": sum(batcher.num_batches for batcher in self.batchers),
            "embedded_inputs_total": sum(batcher.num_inputs for batcher in self.batchers),
            "index_rows": sum(each.num_rows for each in self.collections.values()),
        }


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await run_in_threadpool(function, *args, **kwargs)


def hit_record(hit: Hit) -> dict[str, Any]:
    return {"row": hit.row, "score": round(hit.score, 6), "metadata": hit.metadata}


def json_response(value: Any, status: int = 200) -> Response:
    """In ASCII, with null for NaN: metadata may have text that is no Unicode, and no number."""
    return Response(strict_json.dumps(value), status, media_type="application/json")

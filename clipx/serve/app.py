"""The application: the page, its JSON API, pictures, and clip-retrieval's routes."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from clipx.search.qdrant_connection import QdrantError
from clipx.serve import clip_retrieval, map_routes
from clipx.serve.bodies import ClassifyBody, SearchBody, read_request, shown_errors
from clipx.serve.collection import Collection
from clipx.serve.guard import Guard
from clipx.serve.limits import Limits, Refused
from clipx.serve.service import Service, in_thread, json_response
from clipx.types import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_SIDE = 1024  # of a picture that is sent
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".js": "text/javascript",
}


def build_app(
    collections: Sequence[Collection],
    *,
    token: str | None = None,
    hosts: Sequence[str] = LOOPBACK,
    origins: Sequence[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The application over opened indices. It embeds in a thread that lives as long as it runs.

    token: needed for each request, if any; hosts: by which a server without one is addressed
    origins: of pages elsewhere that may ask this server, such as clip-retrieval's front end
    """
    service = Service(collections, limits or Limits())
    # The pages of documentation that FastAPI makes load scripts from elsewhere.
    app = FastAPI(
        title="clipx", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.running
    )
    app.add_middleware(
        Guard,
        token=token,
        hosts=hosts,
        is_shared=bool(origins),
        limits=service.limits,
        counters=service.counters,
    )
    if origins:
        # Around the guard: a browser asks for permission without the token.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    _add_errors(app)
    _add_page(app)
    _add_api(app, service)
    map_routes.add_routes(app, service)
    clip_retrieval.add_routes(app, service)
    return app


def _add_page(app: FastAPI) -> None:
    """The files of the page, read once: no request names a file."""
    for file in (files("clipx.serve") / "page").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        response = _file_response(file.read_bytes(), MEDIA_TYPES[Path(file.name).suffix])
        app.add_route(path, response, ["GET", "HEAD"])


def _file_response(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return respond


def _add_api(app: FastAPI, service: Service) -> None:
    @app.get("/api/health")
    async def health() -> Response:
        return json_response({"status": "ok", "indices": list(service.collections)})

    @app.get("/api/indices")
    async def indices() -> Response:
        described = [await in_thread(each.describe) for each in service.collections.values()]
        return json_response({"indices": described})

    @app.post("/api/search")
    async def search(request: Request) -> Response:
        async with service.queries.slot():
            body, pictures = await read_request(request, SearchBody, service.limits)
            return json_response(await in_thread(service.search, body, pictures))

    @app.post("/api/classify")
    async def classify(request: Request) -> Response:
        async with service.queries.slot():
            body, pictures = await read_request(request, ClassifyBody, service.limits)
            return json_response(await in_thread(service.classify, body, pictures))

    @app.get("/api/picture/{index}/{row}")
    async def picture(
        index: str,
        row: int,
        size: Annotated[int, Query(ge=16, le=MAX_SIDE)] = 256,
    ) -> Response:
        collection = service.collection(index)
        # In slots of their own: a page asks for forty at a time, and queries do not wait for them.
        async with service.thumbnails.slot():
            content = await in_thread(collection.thumbnail, row, size)
        headers = {"Cache-Control": "private, max-age=600"}
        return Response(content, media_type=collection.pictures.media_type, headers=headers)


def _add_errors(app: FastAPI) -> None:
    """Errors are JSON of one shape. The only 5xx that requests can cause is a full queue's; a
    collection of Qdrant that does not answer is a 502."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        response = json_response({"error": error.message}, error.status)
        if error.retry_seconds is not None:
            response.headers["Retry-After"] = str(error.retry_seconds)
        return response

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return json_response({"error": str(error)}, 400)

    @app.exception_handler(QdrantError)
    async def no_answer(request: Request, error: QdrantError) -> Response:
        # Its text has an address, which is for the operator alone.
        print(f"clipx: {error}", file=sys.stderr, flush=True)
        return json_response({"error": "the vector database does not answer; try later"}, 502)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return json_response({"error": shown_errors(error.errors())}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = json_response({"error": str(error.detail)}, error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # for the log: the client is gone

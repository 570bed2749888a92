"""The routes of the map: its points as numbers, and the names of its regions."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from clipx.serve.service import Service, in_thread


def add_routes(app: FastAPI, service: Service) -> None:
    """Both answer 304 to a client that has the same map."""

    @app.get("/api/map/{index}")
    async def points(index: str, request: Request) -> Response:
        content = await in_thread(service.collection(index).map.content)
        return _response(request, content.points, "application/octet-stream", content.etag)

    @app.get("/api/map/{index}/labels")
    async def labels(index: str, request: Request) -> Response:
        content = await in_thread(service.collection(index).map.content)
        is_gzipped = "gzip" in request.headers.get("accept-encoding", "")
        body = content.gzipped_labels if is_gzipped else content.labels
        response = _response(request, body, "application/json", content.etag)
        response.headers["Vary"] = "Accept-Encoding"
        if is_gzipped and response.status_code == 200:
            response.headers["Content-Encoding"] = "gzip"
        return response


def _response(request: Request, body: bytes, media_type: str, etag: str) -> Response:
    # Kept by the browser, which asks each time whether it is still the same.
    headers = {"Cache-Control": "private, no-cache", "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)

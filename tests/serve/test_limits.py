"""What a server refuses: before it costs anything, with a message, and never by a 5xx."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import served
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import png
from starlette.requests import Request

from clipx import cli, cli_serve
from clipx.cli_serve import check_address
from clipx.serve.bodies import SearchBody, read_request
from clipx.serve.limits import Admission, Limits, Refused
from clipx.types import UserError

TOKEN = "a-token-of-the-tests"


def form(*pictures: bytes, query: str = '{"terms": [{"picture": 0}]}') -> dict[str, Any]:
    files = [("picture", ("x.png", data, "image/png")) for data in pictures]
    return {"data": {"query": query}, "files": files}


def claimed_png(width: int, height: int) -> bytes:
    """A few bytes whose header names a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(bytes(100))):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (claimed_png(10_000, 10_000), 413, "10000 x 10000 pixels exceed"),
        (b"<html><body>no picture</body></html>", 422, "not readable as JPEG, PNG, WEBP"),
        (b"", 422, "0 bytes"),
        (png(1)[:60], 422, "the picture cannot be used"),
    ],
    ids=["large", "html", "empty", "damaged"],
)
def test_a_picture_that_is_none_or_too_large(
    client: TestClient, data: bytes, status: int, message: str
) -> None:
    response = client.post("/api/search", **form(data))
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"terms": []}, "terms: List should have at least 1 item"),
        ({"terms": [{"text": "word " * 10_000}]}, "a text has 50,000 characters; at most 2,000"),
        ({"terms": [{"text": "  "}]}, "a text is empty"),
        ({"terms": [{"text": "a", "row": 1}]}, "each term needs one of text, row and picture"),
        ({"terms": [{"text": "a", "sign": 2}]}, "terms.0.sign: Input should be 1 or -1"),
        ({"terms": [{"picture": 0}]}, "picture 0 is not among the 0 uploaded"),
        ({"terms": [{"row": 90}]}, "drawings has rows 0 to 89, not 90"),
        ({"terms": [{"text": "a"}] * 17}, "a query has 16 parts at most"),
        ({"terms": [{"text": "a"}], "k": 5000, "offset": 1}, "5,001 results are more than"),
        ({"terms": [{"text": "a"}], "where": "prize = 3"}, "there is no column prize"),
        ({"terms": [{"text": "a"}], "where": "price ~ 1 and shop < 3 or"}, None),
        ({"terms": [{"text": "a"}], "index": "../../etc"}, "there is no index of this name"),
        ({"terms": [{"text": "a"}], "modality": "sound"}, "modality: Input should be 'image' or"),
        ({"terms": [{"text": "a"}, {"sign": -1, "text": "a"}]}, "cancel each other out"),
        ({"terms": [{"text": "a", "path": "/etc/passwd"}]}, "Extra inputs are not permitted"),
    ],
)
def test_a_query_that_cannot_be_meant(
    client: TestClient, body: dict[str, Any], message: str | None
) -> None:
    response = client.post("/api/search", json=body)
    if message is not None:
        assert response.status_code in (400, 404, 422)
        assert message in response.json()["error"]
    assert response.status_code < 500


def test_a_body_above_the_limit_is_refused_with_and_without_a_length(folder: Path) -> None:
    with served.client(folder, limits=Limits(body_bytes=10_000)) as client:
        response = client.post("/api/search", content=b"x" * 10_001)
        assert response.status_code == 413
        assert "a request may have 10,000 bytes" in response.json()["error"]
        pieces = (b"x" * 1000 for _ in range(11))
        assert client.post("/api/search", content=pieces).status_code == 413
        response = client.post("/api/search", **form(bytes(20_000)))
        assert response.status_code == 413


def test_beyond_the_queue_requests_are_asked_to_come_again(folder: Path) -> None:
    async def refusals() -> list[tuple[int, int | None]]:
        admission = Admission(active=2, waiting=3)
        release = asyncio.Event()
        refused: list[tuple[int, int | None]] = []

        async def request() -> None:
            try:
                async with admission.slot():
                    assert admission.num_active <= 2
                    await release.wait()
            except Refused as error:
                refused.append((error.status, error.retry_seconds))

        tasks = [asyncio.create_task(request()) for _ in range(9)]
        await asyncio.sleep(0.01)
        assert (admission.num_active, admission.num_waiting) == (2, 3)
        release.set()
        await asyncio.gather(*tasks)
        assert (admission.num_active, admission.num_waiting) == (0, 0)
        return refused

    assert asyncio.run(refusals()) == [(503, 1)] * 4
    with served.client(folder, limits=Limits(active=0, waiting=0)) as client:
        response = client.post("/api/search", json={"terms": [{"text": "a"}]})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "POST", "headers": []}
    request = Request(scope, receive)
    with pytest.raises(Refused, match="did not arrive within 0 seconds") as refused:
        asyncio.run(read_request(request, SearchBody, Limits(body_seconds=0.01)))
    assert refused.value.status == 408


def test_a_token_is_needed_on_every_request(folder: Path) -> None:
    with served.client(folder, token=TOKEN) as client:
        for path in ("/", "/app.js", "/api/health", "/api/picture/drawings/1", "/metrics", "/no"):
            assert client.get(path).status_code == 401
            assert client.get(f"{path}?token={TOKEN}x").status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (
                200,
                404,
            )
        answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert client.get("/api/health").status_code == 200, "by the cookie"
        assert client.get("/api/health", headers={"Host": "elsewhere.org"}).status_code == 200


def test_the_log_has_no_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served.client(folder, token=TOKEN) as client:
        client.get(f"/api/health?token={TOKEN}")
        client.get("/a%0Ab%1B")
    lines = capsys.readouterr().err.splitlines()
    assert any("GET /api/health 200" in line for line in lines)
    assert any("GET /a%0Ab%1B 401" in line for line in lines)
    assert not any(TOKEN in line for line in lines)


def test_another_name_of_this_machine_is_refused(client: TestClient) -> None:
    """A page elsewhere that leads its own name here would read all pictures."""
    response = client.get("/api/indices", headers={"Host": "rebound.example:8000"})
    assert response.status_code == 403
    assert client.get("/api/indices", headers={"Host": "localhost:9"}).status_code == 200
    assert client.get("/api/indices", headers={"Host": "[::1]:9"}).status_code == 200


@pytest.mark.parametrize("host", ["[::1", "[", "", ":", "a b", "127.0.0.1:x", "ä", "[zz]:8000"])
def test_no_host_name_makes_the_server_fail(folder: Path, host: str) -> None:
    for token in (None, TOKEN):
        with served.client(folder, token=token) as client:
            headers = {"Host": host.encode(), "Authorization": f"Bearer {TOKEN}".encode()}
            body = b'{"text": "a cat", "num_result_ids": 3}'
            for path in ("/knn-service", "/knn-service/"):
                answer = client.post(path, content=body, headers=headers, follow_redirects=False)
                assert answer.status_code < 500


def test_a_page_elsewhere_reads_answers_only_where_it_is_allowed(
    client: TestClient, folder: Path
) -> None:
    friend = {"Origin": "http://localhost:3000"}
    assert "access-control-allow-origin" not in client.get("/api/health", headers=friend).headers
    preflight = friend | {"Access-Control-Request-Method": "POST"}
    with served.client(folder, token=TOKEN, origins=[friend["Origin"]]) as shared:
        asked = shared.options("/knn-service", headers=preflight)
        assert asked.headers["access-control-allow-origin"] == friend["Origin"]
        answer = shared.get(f"/api/health?token={TOKEN}", headers=friend)
        assert answer.headers["access-control-allow-origin"] == friend["Origin"]
        stranger = {"Origin": "http://elsewhere.org"}
        answer = shared.get(f"/api/health?token={TOKEN}", headers=stranger)
        assert "access-control-allow-origin" not in answer.headers
        assert shared.get("/api/health", headers=friend).status_code == 401


def test_every_answer_has_the_headers_that_keep_other_sites_out(client: TestClient) -> None:
    for path in ("/", "/api/health", "/none", "/api/picture/drawings/1"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_open_addresses_need_a_token() -> None:
    check_address("127.0.0.1", None)
    check_address("localhost", None)
    check_address("::1", None)
    check_address("0.0.0.0", TOKEN)
    with pytest.raises(UserError, match="is open to other machines, so it needs --token"):
        check_address("0.0.0.0", None)
    with pytest.raises(UserError, match="needs 8 or more letters and digits"):
        check_address("127.0.0.1", "short")
    with pytest.raises(UserError, match="is no address"):
        check_address("no such host", None)


def test_the_command_line_refuses_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--host", "0.0.0.0"], "needs --token"),
        (["--allow-origin", "*"], "--allow-origin * is not of the form"),
        (["--port", "70000"], "--port 70000 is not in 0 ... 65535"),
        (["--port", "0"], "has no manifest.json"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", str(tmp_path), *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_missing_packages_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_serve, "PACKAGES", ("fastapi", "not_installed"))
    with pytest.raises(SystemExit):
        cli.main(["serve", str(tmp_path)])
    message = "serve needs not_installed: pip install 'clipx-train[search,serve]'"
    assert message in capsys.readouterr().err


def test_pictures_that_are_gone_are_404_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "drawings"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    corpus = tmp_path / "corpus"
    shutil.copytree(manifest["data"]["shards"], corpus)
    manifest["data"]["shards"] = str(corpus)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with served.client(copy) as client:
        for path in corpus.iterdir():
            path.unlink()
        response = client.get("/api/picture/drawings/1")
        assert response.status_code == 404
        assert "the picture of k01 cannot be read any more: FileNotFoundError" in response.text
        assert str(tmp_path) not in response.text
        assert client.post("/api/search", json={"terms": [{"row": 1}]}).status_code == 200
    with served.client(copy) as client:
        response = client.get("/api/picture/drawings/1")
        assert response.status_code == 404
        assert "cannot be opened any more" in response.text


def test_a_picture_of_another_sample_is_not_shown(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "drawings"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(100):
        Image.open(io.BytesIO(png(n))).save(pictures / f"other{n:02d}.png")
    sources = {"folder": {"name": "folder", "path": str(pictures)}}
    manifest["data"] |= {"shards": None, "sources": sources}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with served.client(copy) as client:
        response = client.get("/api/picture/drawings/1")
        assert response.status_code == 404
        assert "the corpus has changed: k01 is no longer in its place" in response.text


POSTS = ("/api/search", "/api/classify", "/knn-service", "/metadata")
NUMBERS = st.one_of(
    st.integers(-2, 50), st.integers(), st.floats(), st.sampled_from([2**63, 10**400])
)
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["price < 3", "shop ~ (", "key < 3", "score = nan"])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
TERMS = st.dictionaries(st.sampled_from(["sign", "text", "row", "picture", "?"]), SCALARS)
GOOD_TERMS = st.fixed_dictionaries({"text": st.text(min_size=1, max_size=30)})
VALUES = st.one_of(
    SCALARS,
    st.lists(st.one_of(SCALARS, TERMS), max_size=4),
    st.lists(GOOD_TERMS, min_size=1, max_size=3),
)
NAMES = st.sampled_from(
    [
        "terms",
        "k",
        "offset",
        "where",
        "modality",
        "index",
        "names",
        "prompts",
        "row",
        "text",
        "image",
        "embedding_input",
        "ids",
        "num_images",
        "num_result_ids",
        "indice_name",
        "deduplicate",
        "image_url",
    ]
)
BODIES = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=6),
    st.fixed_dictionaries(
        {"terms": st.lists(GOOD_TERMS, min_size=1, max_size=2)}, optional={"where": TEXTS}
    ),
    VALUES,
)
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check_json(client: TestClient, path: str, body: Any) -> None:
    response = client.post(path, content=json.dumps(body))
    assert response.status_code < 500
    if response.status_code >= 400:
        assert response.json()["error"]


@FUZZ
@given(st.sampled_from(POSTS), BODIES)
def test_no_json_makes_the_server_fail(client: TestClient, path: str, body: Any) -> None:
    check_json(client, path, body)


@pytest.mark.slow
@settings(FUZZ, max_examples=2000)
@given(st.sampled_from(POSTS), BODIES)
def test_no_json_of_many_makes_the_server_fail(client: TestClient, path: str, body: Any) -> None:
    check_json(client, path, body)


CONTENT_TYPES = st.sampled_from(
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=x; charset=utf-7",
        "multipart/form-data; boundary=x; charset=none",
        "text/plain",
        "",
    ]
)
PART = b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n{"terms": [{"picture": 0}]}\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n'
PIECES = st.lists(
    st.one_of(st.sampled_from([PART, FILE, b"--x--\r\n", b"--x\r\n", png(1), b"\r\n"]), st.binary())
)


@pytest.fixture
def collected() -> Iterator[None]:
    """Starlette leaves the files of a form that breaks off to the garbage collector."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@FUZZ
@given(st.sampled_from(POSTS), CONTENT_TYPES, PIECES)
def test_no_bytes_make_the_server_fail(
    collected: None, client: TestClient, path: str, content_type: str, pieces: list[bytes]
) -> None:
    headers = {"Content-Type": content_type}
    response = client.post(path, content=b"".join(pieces), headers=headers)
    assert response.status_code < 500


@FUZZ
@given(st.text(max_size=20), st.one_of(st.text(max_size=8), st.integers()), SCALARS)
def test_no_address_makes_the_server_fail(
    client: TestClient, index: str, row: Any, size: Any
) -> None:
    for path in (
        f"/api/picture/{quote(index, safe='')}/{quote(str(row), safe='')}",
        f"/api/picture/drawings/{quote(str(row), safe='')}",
        "/" + quote(index),
    ):
        response = client.get(path, params={"size": str(size)[:500]})
        assert response.status_code < 500

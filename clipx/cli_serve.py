"""The verb `clipx serve`, which imports what it needs."""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
import sys
from importlib.util import find_spec
from typing import Any

from clipx.types import UserError

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "pyarrow")


def add_verbs(verbs: Any) -> None:
    serve = verbs.add_parser("serve", help="a search page and an HTTP API over embeddings")
    text = "of `clipx embed`, or the URL of a collection; several can be chosen from on the page"
    serve.add_argument("sources", nargs="+", metavar="DIR", help=text)
    text = "default: 8000; 0 takes a free one"
    serve.add_argument("--port", type=int, default=8000, help=text)
    text = "address to listen at (default: 127.0.0.1); others than this machine's need --token"
    serve.add_argument("--host", default="127.0.0.1", help=text)
    text = "8 or more letters and digits, without which the server answers nothing"
    serve.add_argument("--token", metavar="TOKEN", help=text)
    text = "a page elsewhere that may ask this server, such as http://localhost:3000; repeatable"
    serve.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help=text)
    text = "the model, if it is not where it was when the corpus was embedded"
    serve.add_argument("--model", help=text)
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"serve needs {', '.join(missing)}: pip install 'clipx-train[search,serve]'"
        )
    check_address(arguments.host, arguments.token)
    for origin in arguments.allow_origin:
        if not re.fullmatch(r"https?://[^/*\s]+", origin):
            raise UserError(f"--allow-origin {origin} is not of the form http://localhost:3000")
    # Before the model is loaded, which takes longer.
    listener = _listen(arguments.host, arguments.port)

    import logging

    import uvicorn

    from clipx import embed
    from clipx.serve.app import LOOPBACK, build_app
    from clipx.serve.collection import open_collections

    # It writes a line for each damaged byte of a form.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with listener:
        model = embed.load(arguments.model) if arguments.model else None
        collections = open_collections(arguments.sources, model)
        for each in collections:
            print(f"{each.name}: {each.num_rows:,} samples of {each.images.store.source}")
            if each.pictures.corpus is None:
                reason = each.pictures.fault
                print(f"clipx: {each.name} has no pictures to show: {reason}", file=sys.stderr)
        app = build_app(
            collections,
            token=arguments.token,
            hosts=(*LOOPBACK, arguments.host),
            origins=arguments.allow_origin,
        )
        name = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        query = f"?token={arguments.token}" if arguments.token else ""
        print(f"http://{name}:{listener.getsockname()[1]}/{query}", flush=True)
        # Requests are logged by the application, whose lines have no token.
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", ws="none", timeout_keep_alive=30
        )
        uvicorn.Server(config).run(sockets=[listener])


def check_address(host: str, token: str | None) -> None:
    """Raises UserError for an open server without a token, or a token that can be guessed."""
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{8,}", token):
        raise UserError(
            "--token needs 8 or more letters and digits, such as $(openssl rand -hex 16)"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine: {error}") from error
    # The zone of an IPv6 address, after %, is not part of its number.
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    is_local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    if token is None and not is_local:
        raise UserError(
            f"--host {host} is open to other machines, so it needs --token, such as "
            "--token $(openssl rand -hex 16)"
        )


def _listen(host: str, port: int) -> socket.socket:
    """Raises UserError."""
    if not 0 <= port < 65536:
        raise UserError(f"--port {port} is not in 0 ... 65535")
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be used: {error.strerror}; choose another --port"
        ) from error

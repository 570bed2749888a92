"""An S3 server in this process, for tests: moto."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class S3:
    """One bucket, empty at first. `requests` has the method and path of what was asked for."""

    bucket = "corpus"

    def __init__(self, endpoint: str, requests: list[tuple[str, str]]) -> None:
        import boto3

        self.endpoint, self.requests = endpoint, requests
        self.client: Any = boto3.client("s3", endpoint_url=endpoint)
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # what it holds belongs to the process
        self.client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, content: bytes, **more: Any) -> str:
        """The URL."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **more)
        return f"s3://{self.bucket}/{key}"

    def count(self, method: str, key: str) -> int:
        return sum(asked == (method, f"/{self.bucket}/{key}") for asked in self.requests)


@contextmanager
def running_s3() -> Iterator[S3]:
    """For this process and the ones that it starts: endpoint and credentials are in the
    environment."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    requests: list[tuple[str, str]] = []

    def logging(environ: dict[str, Any], start_response: Any) -> Any:
        requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, logging, threaded=True)
    server.log = lambda *args: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_clients()
        yield S3(endpoint, requests)
    server.shutdown()
    server.server_close()
    forget_clients()


def forget_clients() -> None:
    """The endpoint is read when a client is made."""
    import s3fs

    from clipx.data.transfer import store

    store._filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()

"""An S3 server in this process (moto) that can be told to fail a share of its answers, as busy storage does."""

import contextlib
import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUSY = {"503 Slow Down": "SlowDown", "500 Internal Server Error": "InternalError", "429 Too Many Requests": "Busy"}


@dataclass
class S3:
    """`share` of the answers fail; `failed` counts them."""

    port: int = 0
    share: float = 0.0
    failed: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def client(self):
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1")


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto, server = DomainDispatcherApplication(create_backend_app), S3()

    def answer(environ, start):
        if server.draw.random() >= server.share:
            return moto(environ, start)
        server.failed += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status = server.draw.choice(list(BUSY))
        body = f"<?xml version='1.0'?><Error><Code>{BUSY[status]}</Code><Message>busy</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    http = make_server("127.0.0.1", 0, answer, threaded=True)
    server.port = http.server_port
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.client().create_bucket(Bucket="bucket")
    yield server
    http.shutdown()

"""An S3 server on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.faulty import Faults, FaultyServer
from tests.support.serving import serving


@contextmanager
def served_bucket() -> Iterator[FaultyServer]:
    """Serve S3 at a free port with the empty bucket `bucket`, which the environment points to; without faults yet."""
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    botocore = pytest.importorskip("botocore.session")
    pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server.start()
    upstream = "http://{}:{}".format(*server.get_host_and_port())
    proxy = FaultyServer(Faults(), upstream=upstream)
    with serving(proxy), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", upstream)
        botocore.get_session().create_client("s3").create_bucket(Bucket="bucket")
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    server.stop()

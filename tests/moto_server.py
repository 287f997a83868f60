"""A local S3: moto's server, in a thread of the tests."""

from __future__ import annotations

import uuid
from typing import Any

from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "SECRETSECRET", "AWS_DEFAULT_REGION": "us-east-1"}


class MotoServer:
    """The server on a free port, with a bucket.

    Attributes:
        environment: the variables by which a process reaches it.
    """

    bucket = "shared"

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        self.client().create_bucket(Bucket=self.bucket)

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )

    def new_url(self) -> str:
        """The address of an empty store."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"

    def close(self) -> None:
        self._server.stop()

"""An S3 server on this machine alone, with one bucket, and how often it is asked."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "shelf"


@dataclass
class LoopbackStore:
    """A bucket that is written by a client of its own."""

    client: Any
    server: Any
    address: str
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Each request of this process: its method, the object, and the bytes that it asks for."""

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def put_folder(self, key: str, folder: Path) -> None:
        for file in sorted(one for one in folder.rglob("*") if one.is_file()):
            self.put(f"{key}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def empty(self) -> None:
        """Forget every object."""
        for one in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            self.client.delete_object(Bucket=BUCKET, Key=one["Key"])

    def fetched_bytes(self) -> int:
        """Count the bytes of objects that were asked for by this process."""
        spans = [span.removeprefix("bytes=").split("-") for _, _, span in self.asked if span]
        return sum(int(last) - int(first) + 1 for first, last in spans)

    def cut_off(self, patch: pytest.MonkeyPatch, *methods: str) -> None:
        """Let nobody be reached, as without a network; or not by some methods alone."""
        import s3fs

        usual = s3fs.S3FileSystem._call_s3

        async def unreachable(files, method, *given, **options):
            if not methods or method in methods:
                raise OSError("could not connect")
            return await usual(files, method, *given, **options)

        patch.setattr(s3fs.S3FileSystem, "_call_s3", unreachable)


@contextmanager
def loopback_store(patch: pytest.MonkeyPatch):
    """Serve a bucket; fsspec is told of it as a user tells it, by AWS's own variables."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "any"),
        ("AWS_SECRET_ACCESS_KEY", "any"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("NO_PROXY", "127.0.0.1"),
    ):
        patch.setenv(name, value)
    import s3fs

    store = LoopbackStore(None, None, "")

    usual = s3fs.S3FileSystem._call_s3

    async def counted(self, method, *given, **options):
        store.asked.append((method, options.get("Key", ""), options.get("Range", "")))
        return await usual(self, method, *given, **options)

    patch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    patch.setattr(s3fs.S3FileSystem, "retries", 1)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store.server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.server.start()
    store.address = "http://{}:{}".format(*store.server.get_host_and_port())
    patch.setenv("AWS_ENDPOINT_URL", store.address)
    s3fs.S3FileSystem.clear_instance_cache()
    store.client = boto3.client("s3", endpoint_url=store.address)
    store.client.create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        store.server.stop()
        s3fs.S3FileSystem.clear_instance_cache()

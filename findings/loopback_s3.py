"""An S3 server on loopback with one bucket, for as long as a `with` lasts."""

import logging
import os
from contextlib import contextmanager

os.environ |= {
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def bucket(name):
    """Give a client that has made the bucket, and the server's address."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=name)
        yield client, address
    finally:
        server.stop()

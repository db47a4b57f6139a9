#!/usr/bin/env bash
# s3fs says that an object which was replaced "no longer exists", for as long as the process lives.
#
# Guessed:  open() of an object that another client has just written anew reads the new bytes.
# Happens:  if the folder was listed before, open().read() ends with FileExpired: "The remote file ... no longer
#           exists", and so every later try; cat() of the same path gives the new bytes. An object written after
#           the listing is FileNotFoundError to open(), while the bucket has it.
# Why:      s3fs/core.py, _info takes size and ETag from the cached listing, which has no expiry by default, and
#           _fetch_range asks for that ETag (If-Match); cat() asks for no ETag.
# Matters:  shards, indices and checkpoints that are renewed in place during a run: readers that listed the
#           folder at their start fail, with a message that sends people looking for a deletion.
# Versions: s3fs 2026.9.0, aiobotocore 3.10.0, against moto 5.2.5's S3 server on loopback.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" s3fs==2026.9.0 'aiobotocore[boto3]==3.10.0' 'moto[server]==5.2.5'

python - <<'PYTHON'
import sys

from loopback_s3 import bucket

from s3fs import S3FileSystem

with bucket("words") as (client, address):
    client.put_object(Bucket="words", Key="index.txt", Body=b"first\n")
    files = S3FileSystem(endpoint_url=address)
    files.ls("words")
    client.put_object(Bucket="words", Key="index.txt", Body=b"second, and longer\n")
    client.put_object(Bucket="words", Key="later.txt", Body=b"later\n")

    def read(name):
        try:
            with files.open(name) as file:
                return file.read()
        except OSError as error:
            print(f"{name}: {type(error).__name__}: {error}")
            return type(error).__name__

    seen = [read("words/index.txt"), read("words/index.txt"), files.cat("words/index.txt"), read("words/later.txt")]
    fresh = S3FileSystem(endpoint_url=address, skip_instance_cache=True)
    seen.append(fresh.open("words/index.txt").read())
print("open, open again, cat, open the later one, open in a fresh file system:", seen)
new = b"second, and longer\n"
sys.exit(seen != ["FileExpired", "FileExpired", new, "FileNotFoundError", new])
PYTHON

#!/usr/bin/env bash
# Reading a 16 kB column of a Parquet file over s3fs downloads the 100 MB of pictures beside it.
#
# Guessed:  pyarrow reads the footer and the pages of the chosen column, as Parquet is made for.
# Happens:  dataset("...", filesystem=s3fs).to_table(columns=["id"]) of 20 row groups fetches 98 MB of a 100 MB
#           file, or 200, or 420 (as its threads fall); the first batch of one row fetches 82 MB where its
#           row group has 5. With s3fs's cache_type="none" the same column costs 78 kB.
# Why:      pyarrow asks for small ranges far apart, from several threads; fsspec/caching.py, ReadAheadCache
#           answers each miss with a block of 50 MB (s3fs/core.py, default_block_size) and keeps one block.
# Matters:  counting, filtering and splitting picture data on S3 costs several times its size in traffic.
# Versions: pyarrow 26.0.1, s3fs 2026.9.0, fsspec 2026.9.0, against moto 5.2.5's S3 server on loopback.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" pyarrow==26.0.1 s3fs==2026.9.0 fsspec==2026.9.0 'aiobotocore[boto3]==3.10.0' \
    'moto[server]==5.2.5' numpy==2.4.6

python - <<'PYTHON'
import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from loopback_s3 import bucket

from s3fs import S3FileSystem

random = np.random.default_rng(0)
table = pa.table({"id": range(2000), "image": [random.bytes(50_000) for _ in range(2000)]})
stored = io.BytesIO()
pq.write_table(table, stored, row_group_size=100)
size = len(stored.getvalue())


class Counting(S3FileSystem):
    """Counts the bytes that are asked for."""

    fetched = 0

    async def _call_s3(self, method, *given, **options):
        if method == "get_object":
            first, last = options["Range"].removeprefix("bytes=").split("-")
            Counting.fetched += int(last) - int(first) + 1
        return await super()._call_s3(method, *given, **options)


def cost(read):
    Counting.fetched = 0
    read()
    return Counting.fetched


with bucket("pictures") as (client, address):
    client.put_object(Bucket="pictures", Key="all.parquet", Body=stored.getvalue())
    files = Counting(endpoint_url=address, skip_instance_cache=True)

    def ids():
        data = pads.dataset("pictures/all.parquet", filesystem=files)
        assert data.to_table(columns=["id"]).num_rows == 2000

    def first_row():
        with files.open("pictures/all.parquet") as file:
            next(pq.ParquetFile(file).iter_batches(batch_size=1))

    def ids_without_cache():
        with files.open("pictures/all.parquet", cache_type="none") as file:
            assert pq.ParquetFile(file).read(columns=["id"]).num_rows == 2000

    seen = {read.__name__: cost(read) for read in (ids, first_row, ids_without_cache)}
for name, bytes_read in seen.items():
    print(f"{name}: {bytes_read:,} bytes of a file of {size:,}")
ids_cost, first_cost, plain_cost = seen.values()
sys.exit(not (ids_cost > 0.9 * size and first_cost > 10 * size / 20 and plain_cost < 200_000))
PYTHON

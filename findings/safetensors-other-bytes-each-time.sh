#!/usr/bin/env bash
# The same tensors saved with the same metadata are another file in each process.
#
# Guessed:  a format of names, shapes and raw numbers gives the same bytes for the same content, as one of its
#           purposes is to be hashed.
# Happens:  with three entries of metadata, twelve processes write several different files; with one entry, one.
#           Tensors are in order each time; only the entries of "__metadata__" change places.
# Why:      safetensors/src/tensor.rs: Metadata holds the tensors' index sorted, but the metadata in a HashMap, which
#           Rust seeds anew in each process.
# Matters:  a checksum of weights says "changed" where nothing has; a store that keeps equal files once keeps both.
#           Write one entry, or compare tensors.
# Versions: safetensors 0.8.0, numpy 2.4.6.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" safetensors==0.8.0 numpy==2.4.6

cat > write.py <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

KINDS = {"format": "pt", "base": "tiny", "rank": "8"}
metadata = dict(list(KINDS.items())[: int(sys.argv[1])])
written = save({"b": np.zeros(3), "a": np.arange(10)}, metadata=metadata)
print(hashlib.sha256(written).hexdigest()[:12], len(written))
PYTHON
python - <<'PYTHON'
import subprocess
import sys


def files(entries):
    command = [sys.executable, "write.py", str(entries)]
    return {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(12)}


three, one = files(3), files(1)
print(f"three entries: {len(three)} different files of one length: {sorted(three)}")
print(f"one entry: {len(one)} file")
sys.exit(not (len(three) > 1 and len(one) == 1 and len({line.split()[1] for line in three}) == 1))
PYTHON

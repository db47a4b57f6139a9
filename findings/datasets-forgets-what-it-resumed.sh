#!/usr/bin/env bash
# A streamed data set of datasets that has just been resumed says that it stands at its beginning.
#
# Guessed:  load_state_dict and then state_dict give the same place back, as they do for a model or an optimizer.
# Happens:  until the first row has been read, state_dict is that of a fresh data set. Saved and loaded again it starts at
#           row 0, where it was resumed at row 5. Once one row was read, the state is right.
# Why:      datasets/iterable_dataset.py, IterableDataset.load_state_dict keeps the state as _starting_state_dict;
#           state_dict gives _state_dict, which only the next iteration sets from it.
# Matters:  a run that is stopped again before it reads (while it compiles, or evaluates first), and any of several data
#           sets that was not read between two checkpoints: from there on rows are trained on twice, with no word.
# Versions: datasets 5.2.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import sys
from itertools import islice

from datasets import Dataset


def stream(state=None):
    rows = Dataset.from_dict({"row": list(range(20))}).to_iterable_dataset(num_shards=4)
    if state is not None:
        rows.load_state_dict(state)
    return rows


def next_of(rows):
    return next(iter(rows))["row"]


first = stream()
read = [one["row"] for one in islice(first, 5)]
saved = first.state_dict()
resumed = stream(saved)
saved_again = resumed.state_dict()
going_on = stream(saved)
next_of(going_on)
seen = [next_of(stream(saved)), next_of(stream(saved_again)), next_of(stream(going_on.state_dict()))]
print(f"rows {read} were read; the next one after")
for title, row in zip(("resuming", "resuming and saving at once, resumed", "resuming and reading one, resumed"), seen, strict=True):
    print(f"    {title}: {row}")
sys.exit(seen != [5, 0, 6])
PYTHON

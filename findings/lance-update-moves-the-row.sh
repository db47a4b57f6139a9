#!/usr/bin/env bash
# A row that is updated in Lance goes to the end, and every position behind it names another row.
#
# Guessed:  update(where="id = 1") changes the row where it stands; take([1]) gives it, changed.
# Happens:  take([1]) gives row 2. An update of nothing but a caption turns 0 1 2 3 4 5 into 0 2 3 4 5 1, and so does
#           merge_insert, which replaces rows by their key; a column that is added or merged leaves the order.
# Why:      Lance marks the old row as deleted and writes the new one into a fragment of its own, as the last; take (pylance's
#           lance/dataset.py, LanceDataset.take) and scans count the rows that are left, fragment after fragment.
# Matters:  samplers, splits, held-out lists and caches of embeddings that name rows by position: one mended caption, and
#           a row of the held-out ones is trained on. Name rows by a column, or read a version by its number.
# Versions: pylance 14.0.2, pyarrow 26.0.1.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" pylance==14.0.2 pyarrow==26.0.1 numpy==2.4.6

python - <<'PYTHON'
import sys

import lance
import pyarrow as pa


def made(name):
    return lance.write_dataset(pa.table({"id": list(range(6)), "caption": ["a dog"] * 6}), name)


def order(rows):
    return rows.to_table()["id"].to_pylist()


updated, merged, widened = made("updated"), made("merged"), made("widened")
updated.update({"caption": "'a wolf'"}, where="id = 1")
merged.merge_insert("id").when_matched_update_all().execute(pa.table({"id": [1], "caption": ["a wolf"]}))
widened.add_columns({"length": "character_length(caption)"})
for title, rows in (("updated", updated), ("merged", merged), ("with a column added", widened)):
    print(f"{title}: {order(rows)}, take([1]) is {rows.take([1]).to_pylist()[0]}")
moved = [0, 2, 3, 4, 5, 1]
sys.exit((order(updated), order(merged), order(widened), updated.take([1])["id"].to_pylist()) != (moved, moved, list(range(6)), [2]))
PYTHON

#!/usr/bin/env bash
# The first purge_step in a folder voids nothing where TensorBoard reads in Python, and the steps stand there twice.
#
# Guessed:  steps 0 to 5, a stop, purge_step=4 and steps 4 to 7: one value a step, as torch's documentation has it.
# Happens:  so it is with the data server; with --load_fast=false steps 4 and 5 are there with both values, and the curve
#           runs back. The second purge_step is obeyed, or the first when the run had begun with purge_step=0.
# Why:      tensorboard/backend/event_processing/plugin_event_accumulator.py, _CheckForRestartAndMaybePurge takes the first
#           SessionLog.START of a run for its beginning; torch writes one only where purge_step is given, so the first is
#           the restart. event_accumulator.py, and the data server, obey each.
# Matters:  Windows (there is no data server for it), logs read from s3://, --logdir_spec and --detect_file_replacement read in
#           Python. Begin with purge_step=0.
# Versions: tensorboard 2.21.0, tensorboard-data-server 0.7.2, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" tensorboard==2.21.0 tensorboard-data-server==0.7.2 torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from tensorboard_shown import shown, write

NOON = 1_800_000_000
seen = {}
for title, begin in (("begun without", None), ("begun with purge_step=0", 0)):
    write(f"{title}/run", 1, range(6), begin, NOON)
    write(f"{title}/run", 2, range(4, 8), 4, NOON + 60)
    seen[title] = shown(title), shown(title, "--load_fast=false")
    print(f"{title}:", *(" ".join(f"{step}:{value:.0f}" for step, value in one) for one in seen[title]), sep="\n  ")
whole, void = [(step, 1 + (step > 3)) for step in range(8)], [(4, 1), (5, 1)]
sys.exit(list(seen.values()) != [(whole, whole[:4] + void + whole[4:]), (whole, whole)])
PYTHON

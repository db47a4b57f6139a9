#!/usr/bin/env bash
# A run that goes on where the clock is behind loses its new steps in TensorBoard, and shows those that it voided.
#
# Guessed:  purge_step=4 voids the steps from 4 on that were written before it, whichever machine writes on.
# Happens:  steps 0 to 5, then 4 to 7 from a machine an hour behind: TensorBoard ends at step 5, with the values from before
#           the stop, and 6 and 7 are nowhere; read in Python (--load_fast=false) likewise. The same within one second when a
#           process opens its eleventh event file after its tenth: ".10" is read before ".9".
# Why:      tensorboard/summary/writer/event_file_writer.py, EventFileWriter names a file by the second, the host, the process
#           and a count; directory_watcher.py, DirectoryWatcher._GetNextPath, and the data server read files sorted by name,
#           as text, and purge_step voids what was read before it, not what was written before it.
# Matters:  a run that moves to another node, a laptop whose clock was put right, a container started anew within a second:
#           the curve is a stale one, with no gap that would tell.
# Versions: tensorboard 2.21.0, tensorboard-data-server 0.7.2, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" tensorboard==2.21.0 tensorboard-data-server==0.7.2 torch==2.13.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from tensorboard.summary.writer import event_file_writer
from tensorboard_shown import shown, write

NOON = 1_800_000_000
OLD, NEW, VOID = ([(step, value) for step in steps] for steps, value in ((range(4), 1), (range(4, 8), 2), (range(4, 6), 1)))

seen = {}
for title, later, written in (("an hour later", 3600, 0), ("in the same second", 0, 9), ("an hour behind", -3600, 0)):
    event_file_writer._global_uid = event_file_writer.AtomicCounter(written)
    write(f"{title}/run", 1, range(6), 0, NOON)
    write(f"{title}/run", 2, range(4, 8), 4, NOON + later)
    seen[title] = shown(title), shown(title, "--load_fast=false")
    print(f"{title}:", *(" ".join(f"{step}:{value:.0f}" for step, value in one) for one in seen[title]), sep="\n  ")
whole, stale = OLD + NEW, OLD + VOID
sys.exit(list(seen.values()) != [(whole, whole), (stale, stale), (stale, stale)])
PYTHON

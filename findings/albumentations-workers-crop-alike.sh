#!/usr/bin/env bash
# All workers of a DataLoader draw the same crops through Albumentations, and every epoch draws them again.
#
# Guessed:  without a seed crops differ between workers and epochs; with seed= a run can be repeated, its epochs differ.
# Happens:  two workers make each crop twice, and three epochs are one, with a seed and without. With persistent_workers
#           epochs differ, but workers do not; without workers all is as guessed.
# Why:      albumentations/core/composition.py, BaseCompose.set_random_seed makes a generator of its own when the pipeline
#           is built; every worker is forked with a copy of it in the same state, and torch seeds only its own, random
#           and NumPy's global one. Seeding NumPy, the old remedy, does nothing any more.
# Matters:  with eight workers an eighth of the variety, and none over epochs: augmentation as good as off. 2.0.8 is the last
#           release under the MIT licence; its successor, AlbumentationsX 2.5.1, draws anew.
# Versions: albumentations 2.0.8, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" albumentations==2.0.8 torch==2.13.0 numpy==2.4.6
export NO_ALBUMENTATIONS_UPDATE=1

python - <<'PYTHON'
import sys

import albumentations as A
import numpy as np
from torch.utils.data import DataLoader, Dataset

PICTURE = np.arange(64 * 64, dtype=np.float32).reshape(64, 64, 1)


class Crops(Dataset):
    def __init__(self, seed):
        self.crop = A.Compose([A.RandomCrop(4, 4)], seed=seed)

    def __len__(self):
        return 8

    def __getitem__(self, place):
        return int(self.crop(image=PICTURE)["image"][0, 0, 0])


def epochs(seed, workers, **options):
    loader = DataLoader(Crops(seed), batch_size=2, num_workers=workers, **options)
    return [[int(one) for batch in loader for one in batch] for _ in range(3)]


seen = {}
for title, seed, workers, options in (
    ("two workers, no seed", None, 2, {}),
    ("two workers, a seed", 7, 2, {}),
    ("two that stay", None, 2, {"persistent_workers": True}),
    ("no workers", None, 0, {}),
):
    made = epochs(seed, workers, **options)
    print(f"{title}: first corner of 8 crops, epoch by epoch", *made, sep="\n    ")
    seen[title] = (len({*map(tuple, made)}), len({*made[0]}))
print("different epochs, different crops of 8 in the first:", seen)
alike = all(seen[f"two workers, {title}"][0] == 1 for title in ("no seed", "a seed"))
twice = all(crops <= 4 for title, (_, crops) in seen.items() if title != "no workers")
sys.exit(not (alike and twice and seen["two that stay"][0] == 3 and seen["no workers"] > (3, 6)))
PYTHON

"""Turns clips of UCF-101 into pictures and JSONL files, with the published recipe's flags.

python convert_ucf101.py --out_dir OUT                    the recipe's ten classes, from the hub
python convert_ucf101.py --out_dir OUT --source FOLDER    clips at hand
"""

import argparse
import shutil
import sys
from pathlib import Path

from foveal.data.convert import convert
from foveal.errors import UserError
from foveal.published import fetch_clips


def main() -> None:
    """Convert; a mendable error becomes one line and exit status 2."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tmp_dir", type=Path, default=Path("/tmp/ucf101"), help="to unpack in")
    parser.add_argument("--out_dir", type=Path, default=Path("./ucf101"), help="folder to fill")
    parser.add_argument("--source", type=Path, help="folder or zip of clips; none: the hub")
    flags = parser.parse_args()
    try:
        source = flags.source or fetch_clips(flags.tmp_dir)
        done = convert("ucf101", source, flags.out_dir, workers=2)
    except UserError as error:
        print(f"ucf101: {error}", file=sys.stderr)
        sys.exit(2)
    if flags.source is None:
        shutil.rmtree(source)
    for name, labels in done.counts.items():
        print(f"{flags.out_dir / name}.jsonl: {labels.total()} examples")
    for reason, count in done.left_out.most_common():
        print(f"left out, {reason}: {count}")


if __name__ == "__main__":
    main()

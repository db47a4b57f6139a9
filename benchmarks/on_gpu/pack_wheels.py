"""Gather what a machine without a network lacks: wheels, to travel beside the working tree.

    python benchmarks/on_gpu/pack_wheels.py .wheels --python 3.12 --cuda 130

`wheels.txt` names the packages, requirements.txt their versions. Of bitsandbytes' libraries the
one of that CUDA stays; with all of them it would be larger than the rest together. On the other
machine, offline, in the root of this repository:

    python3 -m pip install --quiet --no-index --no-deps --target /tmp/site .wheels/*.whl
    PYTHONPATH=/tmp/site:src python3 benchmarks/on_gpu
"""

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
DEVICE_LIBRARY = "bitsandbytes/libbitsandbytes_"


def pinned(names: Sequence[str], requirements: Sequence[str]) -> list[str]:
    """Find the pin of each package, such as `peft==0.21.2`.

    Raises:
        SystemExit: one has none.
    """
    versions = {line.partition("==")[0].lower(): line for line in requirements}
    missing = [name for name in names if name.lower() not in versions]
    if missing:
        raise SystemExit(f"requirements.txt: no version of {', '.join(missing)}; pin it there")
    return [versions[name.lower()] for name in names]


def slim(wheel: Path, cuda: str) -> None:
    """Leave out of a wheel what other devices than one CUDA version would load."""
    kept_library = f"{DEVICE_LIBRARY}cuda{cuda}.so"
    beside = wheel.with_suffix(".part")

    def stays(name: str) -> bool:
        is_cpu = name.startswith(f"{DEVICE_LIBRARY}cpu")
        return is_cpu or name == kept_library or not name.startswith(DEVICE_LIBRARY)

    with (
        zipfile.ZipFile(wheel) as whole,
        zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as part,
    ):
        if kept_library not in whole.namelist():
            raise SystemExit(f"{wheel.name} has no library for CUDA {cuda}; give another --cuda")
        for entry in whole.infolist():
            content = whole.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines()
                content = "\n".join(one for one in lines if stays(one.split(",")[0])).encode()
            if stays(entry.filename):
                part.writestr(entry, content)
    beside.replace(wheel)


def tree_bytes() -> int:
    """Measure the files of this repository that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")[:-1]
    return sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())


def main() -> None:
    """Download, make small, and say how much it is."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("out", type=Path)
    words.add_argument("--python", default="3.12")
    words.add_argument("--cuda", default="130", help="of bitsandbytes' library, as in its name")
    words.add_argument("--most-mib", type=float, default=64.0, help="wheels and tree together")
    asked = words.parse_args()
    lines = (HERE / "wheels.txt").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", asked.python]
    command += [word for one in PLATFORMS for word in ("--platform", one)]
    subprocess.run([*command, "--dest", str(asked.out), *pinned(names, pins)], check=True)
    for wheel in asked.out.glob("bitsandbytes-*.whl"):
        slim(wheel, asked.cuda)
    wheels = sum(one.stat().st_size for one in asked.out.glob("*.whl"))
    mib = (wheels + tree_bytes()) / 2**20
    print(f"{asked.out}: {wheels / 2**20:.1f} MiB, with the working tree {mib:.1f} MiB")
    if mib > asked.most_mib:
        raise SystemExit(f"that is more than {asked.most_mib:g} MiB; take a line off wheels.txt")


if __name__ == "__main__":
    main()

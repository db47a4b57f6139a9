# shellcheck shell=bash
# Sourced with pinned packages as arguments: a virtual environment of its own in a temporary folder,
# which is the working folder from here on and is gone when the script ends.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
place=$(mktemp -d)
trap 'cd / && rm -rf "$place"' EXIT
cd "$place" || exit
"${PYTHON:-python3.11}" -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check --no-input "$@"
export PATH="$place/venv/bin:$PATH" HOME="$place" PYTHONPATH="$here" OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1 PYTHONWARNINGS=ignore
export TRANSFORMERS_VERBOSITY=error

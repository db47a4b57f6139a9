"""What every test runs under: one thread, memory that is kept, no bars, no network, no luck."""

import ctypes
import gc
import os
import random
import re
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

# What a person's terminal, network, launcher and accounts are is said to their own programs alone.
THEIRS = re.compile(
    r"COLUMNS|LINES|TERM|TERMINAL_WIDTH|NO_COLOR|FORCE_COLOR|PY_COLORS|GITHUB_ACTIONS|TTY_\w+"
    r"|(?i:\w+_proxy)|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_\w+|(TORCHELASTIC|HF|XDG|AWS)_\w+"
    r"|(WANDB|MLFLOW|TRACKIO)_\w+"
)
for name in filter(THEIRS.fullmatch, list(os.environ)):
    del os.environ[name]

# What libraries keep at home is neither found there nor left there.
HOME = TemporaryDirectory(prefix="foveal-tests-")
os.environ["HOME"] = HOME.name

# Before torch is imported, and for the processes that tests start: several tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS adds in any order

# Large tensors come and go; to hand their memory back to the system and fetch it again each time
# costs as much as the arithmetic. These are glibc's M_TRIM_THRESHOLD and M_MMAP_MAX.
if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-1, 2**31 - 1)
    ctypes.CDLL(None).mallopt(-4, 0)

# Whoever starts tests with nohup, or behind `&` in a script, has these two ignored, and so would
# all processes that tests start, which are sent them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a test writes has no power cut to outlive; to wait for the disk is a third of a short run.
os.fsync = lambda descriptor: None

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def pytest_configure(config):
    # All others are about the processor: on a machine with a GPU too they are to see none.
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish():
    # Whoever collects garbage walks all that is imported each time, which takes a second.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each file to one worker, and all that fork to the same: the server loads everything."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            forks = re.search(r"from forked|run_together", (config.rootpath / file).read_text())
            return "all that fork" if forks else file

    return Scheduling(config, log)


def pytest_runtest_setup(item):
    # What is drawn without a seed of its own hangs on no test that came before.
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU is here, or none was asked for: `make gpu` runs this on one")


@pytest.fixture(autouse=True, scope="module")
def spared(request):
    """Leave out what takes longer than a short run, where the tests are not about it."""
    if "torch" not in sys.modules:
        yield
        return
    from spared import spare

    with pytest.MonkeyPatch.context() as patch:
        spare(patch, request.path.relative_to(Path(__file__).parent).parts[0])
        yield

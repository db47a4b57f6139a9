"""What every test runs under: one thread, no progress bars, no network, no luck."""

import os

from hypothesis import settings

# Before torch is imported, and for the processes that tests start: several tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")

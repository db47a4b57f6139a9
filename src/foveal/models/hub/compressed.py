"""A model stored in fewer bits by compressed-tensors -> how transformers reads it whole."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveal.errors import ConfigError, ModelError

LAYOUT = "compressed-tensors"


def is_compressed(name: str) -> bool:
    """Tell whether a folder or hub name holds weights in fewer bits, in this layout."""
    try:
        if Path(name).is_dir():
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        else:
            from transformers import PretrainedConfig

            config, _ = PretrainedConfig.get_config_dict(name)
    except (OSError, ValueError):
        return False  # whoever reads it says so
    stored = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(stored, dict) and stored.get("quant_method") == LAYOUT


def refuse_compressed(name: str) -> None:
    """See that a model can be learnt from.

    Raises:
        ConfigError: its weights are in fewer bits.
    """
    if is_compressed(name):
        raise ConfigError(
            f"model={name}: its weights are in fewer bits; give the whole model that it was made "
            "from (strategy=qlora holds that in 4 bits by itself)"
        )


@contextmanager
def read_whole(name: str) -> Iterator[Any]:
    """Give transformers' settings that read such a model as a whole one; none: it is no such model.

    Raises:
        ModelError: the package that reads it is missing.
    """
    if not is_compressed(name):
        yield None
        return
    from transformers import CompressedTensorsConfig

    try:
        settings = CompressedTensorsConfig(dequantize=True)
    except ImportError as error:
        raise ModelError(
            f"model {name}: its weights are in fewer bits, which needs the package "
            f"{LAYOUT}: pip install 'foveal[quantize]'"
        ) from error
    with warnings.catch_warnings():
        # It says that what the folder holds stands, and this one setting beside it.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        yield settings

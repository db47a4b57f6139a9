"""Fine-tunes vision-language models, Phi-3.5-vision first.

After `import foveal`, transformers' `AutoConfig`, `AutoModelForImageTextToText` and `AutoProcessor`
open a published Phi-3(.5)-vision folder without remote code.
"""

from foveal.models.registration import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()

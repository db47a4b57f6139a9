"""The sizes of a Phi-3(.5)-vision model, read from and written as the published config.json."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, GenerationConfig, Phi3Config

# openai/clip-vit-large-patch14-336, which the published code builds by name.
PUBLISHED_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
PUBLISHED_ARCHITECTURE = "Phi3VForCausalLM"

SHARED_EMBEDDING = {
    r"^model\.vision_embed_tokens\.wte\.weight$": "model.embed_tokens.weight",
}
"""Files saved by the published code may hold the token embedding under its second name."""

NEVER_EMITTED = 2
"""`eos_token_id` of the published config, which the model never emits."""

ENDOFTEXT, END_OF_TURN = 32000, 32007


@strict
class Phi3VisionConfig(Phi3Config):  # type: ignore[misc]
    """Configuration of `Phi3VisionForConditionalGeneration`.

    A published `config.json` is read unchanged. `vision_config`, which is not in it, overrides the
    ViT-L/14-336 tower; `image_token_id` is the id that stands where an image is.
    """

    model_type = "phi3_v"
    sub_configs = {"vision_config": CLIPVisionConfig}  # noqa: RUF012

    vision_config: Any = None
    """`CLIPVisionConfig`, or a mapping of what differs from the published tower."""

    image_token_id: int = 32044
    embd_layer: dict[str, Any] | None = None
    img_processor: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        tower = self.vision_config
        if not isinstance(tower, CLIPVisionConfig):
            tower = CLIPVisionConfig(**(PUBLISHED_TOWER | (tower or {})))
        self.vision_config = tower
        self.embd_layer = self.embd_layer or {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        }
        self.img_processor = self.img_processor or {
            "image_dim_out": tower.hidden_size,
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": self.crop_tokens_side**2,
        }
        # The published file names the attention of its authors' machine.
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Read the published `rope_scaling`; "su" is the old name of LongRoPE."""
        scaling = kwargs.get("rope_scaling")
        if scaling and scaling.get("type") == "su":
            factors = {name: value for name, value in scaling.items() if name != "type"}
            factor = self.max_position_embeddings / self.original_max_position_embeddings
            kwargs["rope_scaling"] = {**factors, "rope_type": "longrope", "factor": factor}
        return dict(super().convert_rope_params_to_dict(**kwargs))

    @property
    def crop_size(self) -> int:
        """Pixels along one side of a crop."""
        return int(self.vision_config.image_size)

    @property
    def crop_tokens_side(self) -> int:
        """Merged patches (2 x 2) along one side of a crop."""
        return int(self.vision_config.image_size // self.vision_config.patch_size // 2)

    def to_dict(self) -> dict[str, Any]:
        """Write the published names, so that other loaders of `phi3_v` read the file too."""
        tree: dict[str, Any] = super().to_dict()
        rope = dict(tree.pop("rope_parameters"))
        tree["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] == "longrope":
            factors = {name: rope[name] for name in ("long_factor", "short_factor")}
            tree["rope_scaling"] = {**factors, "type": "su"}
        if all(getattr(self.vision_config, name) == size for name, size in PUBLISHED_TOWER.items()):
            del tree["vision_config"]
        tree["architectures"] = [PUBLISHED_ARCHITECTURE]
        return tree


def end_of_answer_ids(generation: GenerationConfig, config: Phi3VisionConfig) -> Any:
    """Choose the tokens at which an answer ends."""
    stated = generation.eos_token_id
    if stated in (NEVER_EMITTED, [NEVER_EMITTED]) and config.vocab_size > END_OF_TURN:
        return [ENDOFTEXT, END_OF_TURN]
    return stated

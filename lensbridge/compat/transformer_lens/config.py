"""`HookedTransformerConfig`: what a model is, under the names that notebooks use."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from lensbridge.errors import InputError, suggest

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass
class HookedTransformerConfig:
    """Sizes and choices of a model.

    The first four are required. Others that are left out follow from them, as `n_heads` = d_model /
    d_head and `d_mlp` = 4 * d_model. -1 and None mean "not given".

    Args:
        use_attn_result: whether caches have `attn.hook_result` if it is not named; likewise the
            other `use_` flags for `hook_{q,k,v}_input`, `hook_attn_in` and `hook_mlp_in`.
        normalization_type: "LN", "RMS", and "LNPre", "RMSPre" where gain and bias were folded; None
            for no norms.
        positional_embedding_type: "standard" (learned), "rotary", "shortformer", "alibi", ...
        parallel_attn_mlp: whether attention and MLP read the same residual stream.
        rotary_dim: dimensions of each head that are rotated; None: all.
        init_mode: how the weights of a new model are drawn: "gpt2", "xavier_uniform",
            "xavier_normal", "kaiming_uniform", "kaiming_normal" or "muP".
        initializer_range: with "gpt2" the standard deviation of weights, 0.8 / sqrt(d_model) if it
            is not given; with the others a factor, 1 if it is not given.
        seed: seeds torch, numpy and random when the config is made, and torch again when a model
            is.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    eps: float = 1e-5
    use_attn_result: bool = False
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list[str] | None = None
    init_mode: str = "gpt2"
    normalization_type: str | None = "LN"
    device: Any = None
    n_devices: int = 1
    attention_dir: str = "causal"
    attn_only: bool = False
    seed: int | None = None
    initializer_range: float = -1.0
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    positional_embedding_type: str = "standard"
    final_rms: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None
    n_params: int | None = None
    use_hook_tokens: bool = False
    gated_mlp: bool = False
    default_prepend_bos: bool = True
    dtype: torch.dtype = torch.float32
    tokenizer_prepends_bos: bool | None = None
    n_key_value_heads: int | None = None
    post_embedding_ln: bool = False
    rotary_base: float = 10000
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    use_qk_norm: bool = False
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False  # noqa: N815 (the name is TransformerLens's)
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    norm_topk_prob: bool = False
    rotary_base_local: float | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
        if self.d_mlp is None and not self.attn_only:
            self.d_mlp = 4 * self.d_model
        if self.act_fn is None and not self.attn_only:
            raise InputError("A config with an MLP needs act_fn, such as 'gelu_new' or 'silu'.")
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        if self.attn_scale == -1.0:
            self.attn_scale = self.d_head**0.5 if self.use_attn_scale else 1.0
        if self.seed is not None:
            self.set_seed_everywhere(self.seed)
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / self.d_model**0.5 if self.init_mode == "gpt2" else 1.0
        if self.n_params is None:
            self.n_params = self._count()
        if isinstance(self.dtype, str):
            self.dtype = named_dtype(self.dtype)

    def _count(self) -> int:
        """The number of weights of the layers, without embeddings, biases and norms."""
        attention = 4 * self.d_model * self.d_head * self.n_heads
        experts = self.num_experts or 1
        mlp = (2 + self.gated_mlp) * self.d_model * (self.d_mlp or 0) * experts
        return self.n_layers * (attention + (0 if self.attn_only else mlp))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "HookedTransformerConfig":
        """A config from a dictionary.

        Raises:
            InputError: a key that is not a field.
        """
        known = [one.name for one in fields(cls)]
        for name in config_dict:
            if name not in known:
                raise InputError(f"There is no config field {name!r}.{suggest(name, known)}")
        return cls(**config_dict)

    @classmethod
    def unwrap(
        cls, config: "dict[str, Any] | HookedTransformerConfig"
    ) -> "HookedTransformerConfig":
        """The config itself, or a config from a dictionary."""
        return cls.from_dict(config) if isinstance(config, dict) else config

    def to_dict(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    def is_layer_norm_activation(self) -> bool:
        """Whether the MLP has a norm in its activation (`solu_ln`)."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

    def set_seed_everywhere(self, seed: int) -> None:
        """Seed torch, numpy and random."""
        import random

        import numpy as np

        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def followed_by(self, follower: Callable[[str], None]) -> None:
        """Call a function with the name of each field that is set from now on."""
        self.__dict__["_follower"] = follower

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        self.__dict__[name] = value
        follower = self.__dict__.get("_follower")
        if follower is not None:
            try:
                follower(name)
            except Exception:
                self.__dict__[name] = before
                raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: one for name, one in self.__dict__.items() if name != "_follower"}

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]


COMPUTED = (
    "act_fn",
    "attention_dir",
    "attn_only",
    "attn_scale",
    "attn_scores_soft_cap",
    "attn_types",
    "eps",
    "gated_mlp",
    "parallel_attn_mlp",
    "positional_embedding_type",
    "rotary_base",
    "rotary_dim",
    "scale_attn_by_inverse_layer_idx",
    "use_attn_scale",
    "use_local_attn",
    "use_normalization_before_and_after",
    "use_qk_norm",
    "window_size",
)
"""Fields that say what an open model computes."""


def require_unchanged(name: str, value: Any, opened: Any) -> None:
    """Refuse another value of a field that says what an open model computes.

    Raises:
        InputError: the value is not the one that the model was opened with.
    """
    if name in COMPUTED and value != opened:
        raise InputError(
            f"cfg.{name} says what the HuggingFace model computes, which is {opened!r} and stays "
            "so in an open model. Make a model with another config, or hook the values."
        )


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype from its name, or from itself.

    Raises:
        InputError: an unknown name.

    Example:
        >>> named_dtype("bf16"), named_dtype("torch.float16")
        (torch.bfloat16, torch.float16)
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    plain = dtype.removeprefix("torch.")
    full = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
    named = {str(one).removeprefix("torch."): one for one in _FLOATS}
    try:
        return named[full.get(plain, plain)]
    except KeyError:
        known = ", ".join(named)
        raise InputError(f"{dtype!r} is not a dtype for weights; use one of {known}.") from None


TransformerBridgeConfig = HookedTransformerConfig
"""One config serves both classes here."""

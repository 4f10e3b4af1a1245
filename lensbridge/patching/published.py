"""The field's activation-patching functions: each patches one activation over a grid.

Names, arguments and axes are those of TransformerLens's `patching` module. Positions are columns of
the batch, also where texts are padded.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lensbridge.hooked_model import HookedModel
from lensbridge.patching.activation import generic_activation_patch
from lensbridge.patching.signatures import PatchingFunction
from lensbridge.sweeps import setters
from lensbridge.sweeps.edit import Setter
from lensbridge.sweeps.metric import MetricFunction

_ARGUMENTS = """

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run, as for `forward`.
        clean_cache: activations of the clean run, with the ones that are patched in.
        patching_metric: maps logits to a number, or to one for each example; or several by name.
        options: the keywords of `generic_activation_patch`: `reduce`, `baseline`, `exact`...

    Shapes: """


def _over(
    name: str, activation: str, setter: Setter, axes: tuple[str, ...], what: str
) -> PatchingFunction:
    """A patching function of one activation over the axes of its result."""

    def patch(
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Mapping[str, Tensor],
        patching_metric: "MetricFunction | Mapping[str, MetricFunction]",
        index_df: Any = None,
        **options: Any,
    ) -> Any:
        named = options.pop("index_axis_names", axes if index_df is None else None)
        return generic_activation_patch(
            model,
            corrupted_tokens,
            clean_cache,
            patching_metric,
            options.pop("patch_setter", setter),
            options.pop("activation_name", activation),
            named,
            index_df,
            **options,
        )

    patch.__name__ = patch.__qualname__ = name
    patch.__doc__ = f"{what}{_ARGUMENTS}`[{', '.join(axes)}]`\n"
    return patch


_POS = ("layer", "pos")
_POS_HEAD = ("layer", "pos", "head")
_HEAD = ("layer", "head")
_by_pos = setters.layer_pos_head_vector_patch_setter
_all_pos = setters.layer_head_vector_patch_setter

get_act_patch_resid_pre = _over(
    "get_act_patch_resid_pre",
    "resid_pre",
    setters.layer_pos_patch_setter,
    _POS,
    "Patch the residual stream at the start of each layer, by position.",
)
get_act_patch_resid_mid = _over(
    "get_act_patch_resid_mid",
    "resid_mid",
    setters.layer_pos_patch_setter,
    _POS,
    "Patch the residual stream between attention and MLP, by position.",
)
get_act_patch_attn_out = _over(
    "get_act_patch_attn_out",
    "attn_out",
    setters.layer_pos_patch_setter,
    _POS,
    "Patch what attention adds to the stream, by position.",
)
get_act_patch_mlp_out = _over(
    "get_act_patch_mlp_out",
    "mlp_out",
    setters.layer_pos_patch_setter,
    _POS,
    "Patch what the MLP adds to the stream, by position.",
)
get_act_patch_attn_head_out_by_pos = _over(
    "get_act_patch_attn_head_out_by_pos",
    "z",
    _by_pos,
    _POS_HEAD,
    "Patch the output of each head (z), by position.",
)
get_act_patch_attn_head_q_by_pos = _over(
    "get_act_patch_attn_head_q_by_pos",
    "q",
    _by_pos,
    _POS_HEAD,
    "Patch the query of each head, by position.",
)
get_act_patch_attn_head_k_by_pos = _over(
    "get_act_patch_attn_head_k_by_pos",
    "k",
    _by_pos,
    _POS_HEAD,
    "Patch the key of each key/value head, by position.",
)
get_act_patch_attn_head_v_by_pos = _over(
    "get_act_patch_attn_head_v_by_pos",
    "v",
    _by_pos,
    _POS_HEAD,
    "Patch the value of each key/value head, by position.",
)
get_act_patch_attn_head_pattern_by_pos = _over(
    "get_act_patch_attn_head_pattern_by_pos",
    "pattern",
    setters.layer_head_pos_pattern_patch_setter,
    ("layer", "head_index", "dest_pos"),
    "Patch each row of each head's attention pattern.",
)
get_act_patch_attn_head_pattern_dest_src_pos = _over(
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "pattern",
    setters.layer_head_dest_src_pos_pattern_patch_setter,
    ("layer", "head_index", "dest_pos", "src_pos"),
    "Patch each weight of each head's attention pattern.",
)
get_act_patch_attn_head_out_all_pos = _over(
    "get_act_patch_attn_head_out_all_pos",
    "z",
    _all_pos,
    _HEAD,
    "Patch the output of each head (z) at all positions.",
)
get_act_patch_attn_head_q_all_pos = _over(
    "get_act_patch_attn_head_q_all_pos",
    "q",
    _all_pos,
    _HEAD,
    "Patch the query of each head at all positions.",
)
get_act_patch_attn_head_k_all_pos = _over(
    "get_act_patch_attn_head_k_all_pos",
    "k",
    _all_pos,
    _HEAD,
    "Patch the key of each key/value head at all positions.",
)
get_act_patch_attn_head_v_all_pos = _over(
    "get_act_patch_attn_head_v_all_pos",
    "v",
    _all_pos,
    _HEAD,
    "Patch the value of each key/value head at all positions.",
)
get_act_patch_attn_head_pattern_all_pos = _over(
    "get_act_patch_attn_head_pattern_all_pos",
    "pattern",
    setters.layer_head_pattern_patch_setter,
    ("layer", "head_index"),
    "Patch the attention pattern of each head.",
)

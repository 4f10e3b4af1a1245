"""`get_act_name`: a full name from a short one, without a model."""

import re

from lensbridge.points.names import expand_short

_COMPACT = re.compile(r"([a-z_]+?)(\d+)([a-z]\w*)?")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a point, from its short one.

    Args:
        name: a short name, a compact one (`k6`, `scale4ln1`), or a full name, which is returned.
        layer: the layer; None for a point outside the layers.
        layer_type: the part that has the point, where the name is not enough: `ln1`, `attn`.

    Raises:
        UnknownPointError: no point has this name, or several have and `layer_type` is missing.

    Source: TransformerLens's function of this name. Where a point has another name here, the
        result is the name that caches list (`unembed` gives `hook_logits`).

    Example:
        >>> get_act_name("k", 6, "a"), get_act_name("k6"), get_act_name("scale4ln1")
        ('blocks.6.attn.hook_k', 'blocks.6.attn.hook_k', 'blocks.4.ln1.hook_scale')
        >>> get_act_name("resid_pre", 3), get_act_name("embed"), get_act_name("scale")
        ('blocks.3.hook_resid_pre', 'hook_embed', 'ln_final.hook_scale')
    """
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    compact = _COMPACT.fullmatch(name)
    if compact and layer is None:
        return expand_short(compact[1], int(compact[2]), compact[3])
    return expand_short(name, None if layer is None else int(layer), layer_type)

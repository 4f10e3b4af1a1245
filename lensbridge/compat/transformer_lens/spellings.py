"""Names of points in TransformerLens's caches, where lensbridge has other names."""

from collections.abc import Collection

GRAD = "_grad"
RENAMED = {"unembed.hook_in": "ln_final.hook_out", "unembed.hook_out": "hook_logits"}
"""Names in TransformerLens's caches -> the names that lensbridge lists instead."""

SPELLED = {new: old for old, new in RENAMED.items()}

RESULT, HEAD_OUT = ".attn.hook_result", ".attn.hook_head_out"
"""Where a norm is behind attention (Gemma 2), TransformerLens's `hook_result` is the value before
that norm, which lensbridge calls `hook_head_out`."""


def spelled(name: str) -> str:
    """A name of lensbridge as TransformerLens's caches list it, also of a gradient.

    Example:
        >>> spelled("hook_logits_grad"), spelled("hook_embed")
        ('unembed.hook_out_grad', 'hook_embed')
    """
    plain, end = _without_grad(name)
    if plain.endswith(HEAD_OUT):
        plain = plain.removesuffix(HEAD_OUT) + RESULT
    return SPELLED.get(plain, plain) + end


def unspelled(name: str, index: Collection[str]) -> str:
    """A name of TransformerLens's caches as lensbridge has it.

    Args:
        name: the name; any other spelling is returned as it is.
        index: the names that the model has in lensbridge.
    """
    plain, end = _without_grad(name)
    return (_head_out(plain, index) or RENAMED.get(plain, plain)) + end


def is_listed(name: str, index: Collection[str]) -> bool:
    """Whether a name of lensbridge is listed here: not where another point has its spelling."""
    return _head_out(name, index) is None


def _head_out(name: str, index: Collection[str]) -> str | None:
    if not name.endswith(RESULT):
        return None
    other = name.removesuffix(RESULT) + HEAD_OUT
    return other if other in index else None


def _without_grad(name: str) -> tuple[str, str]:
    return (name.removesuffix(GRAD), GRAD) if name.endswith(GRAD) else (name, "")

"""Head detection: heads whose attention matches a pattern, such as that of induction heads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, LensbridgeError, suggest
from lensbridge.hooked_model import HookedModel

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
"""The kinds of heads whose pattern is built in."""

ErrorMeasure = Literal["mul", "abs"]
"""mul: the share of attention that goes where the pattern is 1. abs: 1 less the distance to the
pattern, summed over keys and averaged over queries."""

Heads: TypeAlias = Sequence[tuple[int, int]] | Mapping[int, Sequence[int]]
"""`(layer, head)` pairs, or heads by layer."""

NOT_SCORED = -1.0
"""The score of heads that were not asked for, and of layers without attention."""


def get_previous_token_head_detection_pattern(tokens: Tensor) -> Tensor:
    """The pattern of a previous-token head: 1 at the token before.

    Shapes: `[..., pos]` -> `[..., query, key]`

    Example:
        >>> get_previous_token_head_detection_pattern(torch.tensor([7, 8, 9])).tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    length = tokens.shape[-1]
    before = torch.ones(length - 1, device=tokens.device).diag(-1)
    return before.expand(*tokens.shape[:-1], length, length)


def get_duplicate_token_head_detection_pattern(tokens: Tensor) -> Tensor:
    """The pattern of a duplicate-token head: 1 at every earlier copy of the token.

    Shapes: `[..., pos]` -> `[..., query, key]`

    Example:
        >>> get_duplicate_token_head_detection_pattern(torch.tensor([7, 8, 7])).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
    return same.float().tril(-1)


def get_induction_head_detection_pattern(tokens: Tensor) -> Tensor:
    """The pattern of an induction head: 1 at every token that follows an earlier copy.

    Shapes: `[..., pos]` -> `[..., query, key]`

    Example:
        >>> get_induction_head_detection_pattern(torch.tensor([7, 8, 7])).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    copies = get_duplicate_token_head_detection_pattern(tokens)
    return torch.nn.functional.pad(copies, (1, 0))[..., :-1]


_PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def get_supported_heads() -> tuple[str, ...]:
    """The kinds of heads that `detect_head` knows by name.

    Example:
        >>> get_supported_heads()
        ('previous_token_head', 'duplicate_token_head', 'induction_head')
    """
    return tuple(_PATTERNS)


def compute_head_attention_similarity_score(
    attention_pattern: Tensor,
    detection_pattern: Tensor,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> Any:
    """How well attention matches a pattern.

    Args:
        attention_pattern: that of one head, or of several.
        detection_pattern: the pattern to match.
        exclude_bos: leave out attention to the first token.
        exclude_current_token: leave out attention of tokens to themselves.
        error_measure: "mul": the part of all attention that is where the pattern is 1. "abs": 1
            less the distance to the pattern, summed over keys and averaged over queries.

    Shapes: `[..., query, key]`, `[query, key]` -> a float for one head, otherwise `[...]`

    Raises:
        InputError: sizes that do not match, or an unknown measure.
    """
    size = attention_pattern.shape[-2:]
    if size[0] != size[1] or detection_pattern.shape[-2:] != size:
        raise InputError(
            f"Attention of {tuple(size)} and a detection pattern of "
            f"{tuple(detection_pattern.shape)}: both are [query, key] over the same tokens."
        )
    if error_measure not in get_args(ErrorMeasure):
        raise InputError(f"error_measure is 'mul' or 'abs', not {error_measure!r}.")
    counted = torch.ones(size, device=attention_pattern.device)
    if exclude_bos:
        counted[:, 0] = 0
    if exclude_current_token:
        counted.fill_diagonal_(0)
    wanted = detection_pattern.to(counted)
    if error_measure == "mul":
        attention = attention_pattern * counted
        total = attention.sum((-2, -1))
        score = (attention * wanted).sum((-2, -1)) / total.where(total > 0, 1.0)
    else:
        off = (attention_pattern - wanted).abs() * counted
        score = 1 - off.sum((-2, -1)) / size[0]
    return float(score) if score.ndim == 0 else score


@torch.no_grad()
def detect_head(
    model: HookedModel,
    seq: Any,
    detection_pattern: Tensor | HeadName,
    heads: Heads | None = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
    **forward: Any,
) -> Tensor:
    """Score every head by how well its attention matches a pattern.

    Args:
        model: the model; an encoder-decoder is refused.
        seq: text, texts, ids `[pos]` or `[batch, pos]`; scores are averaged over the rows. Padding
            is left out.
        detection_pattern: a kind of head by name, or the pattern to match.
        heads: only these: `(layer, head)` pairs, or heads by layer.
        cache: a cache of a run of `seq` with the attention patterns.
        exclude_bos: leave out attention to the first token of a row.
        exclude_current_token: leave out attention of tokens to themselves.
        error_measure: "mul": the part of all attention that goes where the pattern is 1. "abs": 1
            less the distance to the pattern; from -1 to 1, which is a perfect match.
        forward: other arguments of `forward`: `attention_mask`, `prepend_bos`...

    Shapes: a pattern `[query, key]`, or `[batch, query, key]` -> `[layer, head]`, -1 for heads that
        were not asked for or layers that have no attention.

    Raises:
        InputError: a pattern of another size or one that a causal model cannot show, an unknown
            kind of head, or heads that the model lacks.
        LensbridgeError: a model without attention, or with two stacks.

    Source: TransformerLens's head detector.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import detect_head
        >>> model = lensbridge.load("demo")
        >>> text = " The red bus was late. The red bus was late."
        >>> scores = detect_head(model, text, "induction_head")
        >>> divmod(int(scores.argmax()), model.cfg.n_heads)
        (2, 2)
    """
    chosen = _chosen(model, heads)
    if cache is None:
        names = [f"{model.native.main.prefix}.{layer}.attn.hook_pattern" for layer in chosen]
        _, made = model.run_with_cache(seq, names_filter=names, return_type=None, **forward)
        cache = made
    rows = list(_rows(model, seq, cache, detection_pattern))
    most = max(attn.n_heads for attn in _attention(model).values())
    scores = torch.full((len(model.native.blocks), most), NOT_SCORED)
    how: dict[str, Any] = {
        "exclude_bos": exclude_bos,
        "exclude_current_token": exclude_current_token,
        "error_measure": error_measure,
    }
    for layer, wanted in chosen.items():
        pattern = cache["pattern", layer]
        pattern = pattern if cache.has_batch_dim else pattern.unsqueeze(0)
        _require_whole(pattern, rows[0][1])
        pattern = pattern.double()
        found = [_score(pattern[i][wanted], real, detect, how) for i, real, detect in rows]
        scores[layer, wanted] = torch.stack(found).mean(0).float().cpu()
    return scores


def _require_whole(pattern: Tensor, real: Tensor) -> None:
    if tuple(pattern.shape[-2:]) != (len(real), len(real)):
        raise InputError(
            f"The cache has attention of {list(pattern.shape[-2:])} queries and keys for "
            f"{len(real)} tokens, and head detection needs the whole pattern: run without "
            "pos_slice."
        )


def _score(pattern: Tensor, real: Tensor, wanted: Tensor, how: dict[str, Any]) -> Tensor:
    """The scores of heads `[head, query, key]` on the real tokens of one row."""
    real = real.to(pattern.device)
    attention = pattern[:, real][:, :, real]
    if bool((wanted.triu(1) != 0).any()) and not bool((attention.triu(1) != 0).any()):
        raise InputError(
            "The detection pattern has attention to later tokens, and this model is causal. Rows "
            "are queries and columns keys: pass its lower triangle."
        )
    score: Tensor = compute_head_attention_similarity_score(attention, wanted, **how)
    return score


def _rows(
    model: HookedModel, seq: Any, cache: ActivationCache, asked: Tensor | str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each row its number, which of its columns are tokens, and the pattern on these."""
    tokens, mask = cache.tokens, cache.attention_mask
    if tokens is None:
        raise InputError("Head detection needs tokens, and the input (or the cache) has none.")
    _check_same(model, seq, tokens)
    real = torch.ones_like(tokens) if mask is None else mask
    if real.shape != tokens.shape:
        raise InputError("Head detection needs the whole input: run without a key/value cache.")
    for i, (row, there) in enumerate(zip(tokens.cpu(), real.bool().cpu(), strict=True)):
        if int(there.sum()) < 2:
            raise InputError(f"Row {i} has {int(there.sum())} tokens, and detection needs two.")
        yield i, there, _pattern(asked, row, there, i, len(tokens))


def _check_same(model: HookedModel, seq: Any, tokens: Tensor) -> None:
    """Compare the tokens of a cache with the ids that were passed with it."""
    if isinstance(seq, Tensor) and not seq.is_floating_point():
        given = seq.unsqueeze(0) if seq.ndim == 1 else seq
        if given.shape != tokens.shape or not torch.equal(given.cpu(), tokens.cpu()):
            raise InputError("The cache has other tokens than those that were passed.")


def _pattern(asked: Tensor | str, row: Tensor, real: Tensor, i: int, batch: int) -> Tensor:
    if isinstance(asked, str):
        if asked not in _PATTERNS:
            raise InputError(
                f"{asked!r} is not a kind of head; the kinds are {', '.join(_PATTERNS)}."
                f"{suggest(asked, _PATTERNS)}"
            )
        return _PATTERNS[asked](row[real])
    size, length = tuple(asked.shape), len(row)
    if size not in ((length, length), (batch, length, length)):
        raise InputError(
            f"The detection pattern has shape {size} and there are {length} tokens: pass "
            f"[query, key] {(length, length)}, or one for each of the {batch} rows."
        )
    own = asked.cpu() if asked.ndim == 2 else asked[i].cpu()
    return own[real][:, real]


def _attention(model: HookedModel) -> dict[int, Any]:
    """The attention of every layer that has one."""
    native, kind = model.native, type(model.native.core).__name__
    if native.is_encoder_decoder:
        raise LensbridgeError(
            f"{kind} has attention in two stacks and between them. Take the patterns from a cache "
            "and use compute_head_attention_similarity_score."
        )
    found = {i: block.attn for i, block in enumerate(native.blocks) if block.attn is not None}
    if not found:
        raise LensbridgeError(f"{kind} has no attention, so it has no heads to detect.")
    return found


def _chosen(model: HookedModel, heads: Heads | None) -> dict[int, list[int]]:
    """The chosen heads, by layer."""
    there = _attention(model)
    if heads is None:
        return {layer: list(range(attn.n_heads)) for layer, attn in there.items()}
    pairs = (
        [(layer, head) for layer, several in heads.items() for head in several]
        if isinstance(heads, Mapping)
        else list(heads)
    )
    found: dict[int, list[int]] = {}
    for layer, head in pairs:
        if layer not in there or not 0 <= head < there[layer].n_heads:
            raise InputError(f"Layer {layer} has no head {head}.")
        if head not in found.setdefault(layer, []):
            found[layer].append(head)
    if not found:
        raise InputError("heads is empty: pass at least one head, or None for all.")
    return found

"""What is kept of a generation: activations of every pass, put together along the positions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.cache.capture import Keep, position_axis
from lensbridge.errors import HookNeverFiredError, InputError
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.native_hook import NativeHook
from lensbridge.hooks.progress import Progress
from lensbridge.native.fsdp import is_fully_sharded
from lensbridge.sites.site import Site

_IDS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
_COUNTED = ("position_ids", "decoder_position_ids", "cache_position")
_PREFILL_ONLY = ("pixel_", "image_", "video_", "input_features")


@dataclass(frozen=True)
class Piece:
    """What one pass adds to an activation.

    Args:
        value: its new columns.
        end: the column after the last of the pass.
    """

    value: Tensor
    end: int


@dataclass
class DecodingCollector:
    """Callbacks that keep the activations of every pass of a generation.

    Args:
        sites: of the model.
        names: which points; those of towers and the encoder's keys and values are kept once.
        required: whether each has to be there at every position; those that need not be and are
            not are left out.
        keep: how.
        once: whether a point has no columns of the text that is generated.
        progress: that of the run.
    """

    sites: Mapping[str, Site]
    names: Sequence[str]
    required: bool
    keep: Keep
    once: Callable[[str], bool]
    progress: Progress = field(default_factory=Progress)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)

    def callbacks(self) -> list[Callback]:
        """A reader for each name."""
        return [
            Callback(name, "read", self._reader(name), name, self.required, follows=True)
            for name in self.names
        ]

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        letters, once = self.sites[name].axes, self.once(name)
        axis = position_axis(letters)
        alone = self.sites[name].may_be_part

        def read(value: Tensor) -> None:
            held = self.pieces.setdefault(name, [])
            if once or axis is None:
                held[:] = held or [Piece(self.keep.capture(value, letters, alone), 0)]
                return
            size = value.shape[axis]
            # a model may put pictures in front of the text, which has no columns for them
            end = max(self.progress.past + self.progress.count, size)
            new = end - (held[-1].end if held else 0)
            part = value.narrow(axis, max(size - new, 0), min(new, size))
            held.append(Piece(self.keep.capture(part, letters, alone or new < size), end))

        return read

    def tensors(self) -> dict[str, Tensor]:
        """The activations of the whole run.

        Raises:
            HookNeverFiredError: a named point that some pass did not reach, or only in part.
        """
        total = self.progress.past + self.progress.count
        found = {name: self._joined(name, held, total) for name, held in self.pieces.items()}
        short = [name for name, value in found.items() if value is None]
        if short and self.required:
            raise HookNeverFiredError(
                f"{', '.join(short)}: not every position passed it while the text was generated "
                "(a recurrent layer may go on from its state by another way, and pictures may take "
                "positions of their own). Run the model on the finished text."
            )
        return {name: value for name, value in found.items() if value is not None}

    def _joined(self, name: str, held: list[Piece], total: int) -> Tensor | None:
        axes = self.sites[name].axes
        axis = position_axis(axes)
        if axis is None and len(axes.split()) > 2 and not self.once(name):
            return None
        if axis is None or self.once(name):
            return held[0].value
        total = max(total, held[-1].end)
        if "k" in axes.split() and ".cross_attn." not in name:
            fill = 0.0 if name.endswith("pattern") else -torch.inf
            held = [Piece(_widened(one, total, fill), one.end) for one in held]
        whole = torch.cat([one.value for one in held], dim=axis)
        return whole if whole.shape[axis] == total else None


def _widened(piece: Piece, total: int, fill: float) -> Tensor:
    """A piece of a pattern with keys for all columns: nothing is given to those it does not see."""
    before = piece.end - piece.value.shape[-1]
    return torch.nn.functional.pad(piece.value, (before, total - piece.end), value=fill)


def check_rows_stay(config: Any, options: Mapping[str, Any]) -> None:
    """Refuse ways to generate in which a row does not go on from its own activations, pass by pass.

    Raises:
        InputError: beams, drafts of another model, or a key/value cache with empty places.
    """
    if (config.num_beams or 1) > 1:
        raise InputError(
            "return_cache needs rows that stay in their place; a beam search moves them. Generate "
            "first, then run_with_cache on what came of it."
        )
    if "static" in (config.cache_implementation or ""):
        raise InputError(
            "return_cache: patterns over a static key/value cache have keys for places that are "
            "still empty. Leave cache_implementation out."
        )
    drafted = options.get("assistant_model") is not None or config.prompt_lookup_num_tokens
    if drafted:
        raise InputError("return_cache needs one pass for each token; assisted decoding drafts.")


def check_ends_together(model: nn.Module) -> None:
    """Refuse a model that is run on when its text is finished, until other ranks have theirs.

    Raises:
        InputError: `fully_shard` has spread it over several processes.
    """
    if is_fully_sharded(model) and torch.distributed.get_world_size() > 1:
        raise InputError(
            "return_cache: a model that is sharded by fully_shard is run until every rank has its "
            "text, so a rank whose text is finished would keep what does not belong to it. "
            "Generate first, then run_with_cache on what came of it."
        )


@contextmanager
def whole_logits(root: nn.Module) -> Iterator[None]:
    """Passes inside give logits at every position; a model's own `generate` may ask for the last
    alone.
    """

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "logits_to_keep": 0}

    handle = root.register_forward_pre_hook(NativeHook(ask), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def last_call(progress: Progress, sequences: Tensor) -> dict[str, Any]:
    """The call that reads the last token of a generated text, as the next pass would have.

    Args:
        progress: after the last pass.
        sequences: `[batch, pos]` as `generate` gave it.
    """
    continues = progress.continues
    read_once = _PREFILL_ONLY if continues else ()
    named = {
        name: value
        for name, value in progress.named.items()
        if name not in _IDS and not name.startswith(read_once)
    }
    decodes = "decoder_input_ids" in progress.named
    total = progress.past + progress.count
    ids, last = "decoder_input_ids" if decodes else "input_ids", sequences[:, -1:]
    read = progress.named.get(ids)  # `sequences` may lack what a decoder starts with
    named[ids] = last if continues or read is None else torch.cat([read, last], dim=1)
    mask = "decoder_attention_mask" if decodes else "attention_mask"
    if named.get(mask) is not None:
        named[mask] = _longer(named[mask], total)
    for name in _COUNTED:
        if named.get(name) is not None:
            following = named[name][..., -1:] + 1
            named[name] = following if continues else torch.cat([named[name], following], dim=-1)
    if named.get("token_type_ids") is not None:
        last = named["token_type_ids"][..., -1:]
        named["token_type_ids"] = (
            last if continues else torch.cat([named["token_type_ids"], last], dim=-1)
        )
    return named


def _longer(mask: Any, total: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != total:
        raise InputError(
            "return_cache: this model generates with a mask of its own making, so the last token "
            "cannot be read. Generate first, then run_with_cache on what came of it."
        )
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

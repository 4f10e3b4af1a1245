"""Loops over a dataset that keep one layer's stream: by hand, and with the field's tools.

Each loop writes what it kept with safetensors, in shards of the same size; SAELens's caching runner
writes Arrow files of its own. All read the same rows of ids.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lensbridge
from benchmarks.timing import Work

Read = Callable[[Tensor], Tensor]
"""The stream of a batch of ids. Shapes: `[batch, pos]` -> `[batch, pos, d_model]`"""

Loop = Callable[[Path], Tensor]
"""Writes everything to a folder, and gives back what the first shard has."""


class StopHereError(Exception):
    """The layer was reached."""


@dataclass
class Dataset:
    """Rows of ids, and the layer whose output is kept.

    Args:
        hf: the bare GPT-2.
        ids: `[row, pos]`
        batch: rows that run together.
        shard: batches of a shard.
        layer: the layer.
    """

    hf: Any
    ids: Tensor
    batch: int
    shard: int
    layer: int

    @property
    def point(self) -> str:
        """The name of the point."""
        return f"blocks.{self.layer}.hook_resid_post"

    def stopped(self, part: Tensor, **options: Any) -> Tensor:
        """By a hook that raises, so that no later layer runs."""
        kept: list[Tensor] = []

        def stop(_: Any, given: Any, out: Any) -> None:
            kept.append(out[0] if isinstance(out, tuple) else out)
            raise StopHereError

        handle = self.hf.transformer.h[self.layer].register_forward_hook(stop)
        try:
            self.hf(part, **options)
        except StopHereError:
            pass
        finally:
            handle.remove()
        return kept[0]

    def bare(self, part: Tensor) -> Tensor:
        """As `stopped`, without the cache of keys and values, which nothing needs."""
        return self.stopped(part, use_cache=False)

    def whole(self, part: Tensor) -> Tensor:
        """By a run of all layers, as most notebooks do."""
        found = self.hf(part, output_hidden_states=True).hidden_states[self.layer + 1]
        return torch.as_tensor(found)

    def loop(self, read: Read) -> Loop:
        """A loop that writes; it gives back what the first shard has."""

        def run(folder: Path) -> Tensor:
            parts = self.ids.split(self.batch)
            for number in range(0, len(parts), self.shard):
                some = parts[number : number + self.shard]
                acts = torch.cat([read(part).flatten(0, 1) for part in some])
                tensors = {"acts": acts, "tokens": torch.cat(some).flatten()}
                save_file(tensors, folder / f"{number // self.shard}.safetensors")
            return load_file(folder / "0.safetensors")["acts"]

        return run


@dataclass
class Peers:
    """The loops of the field's tools, where they are installed."""

    data: Dataset

    def loops(self) -> Iterator[tuple[str, Loop]]:
        """Name -> a loop, for each tool that is here."""
        if find_spec("transformer_lens") is not None:
            yield "TransformerLens, run_with_cache up to the layer", self.data.loop(self.lens)
        if find_spec("nnsight") is not None:
            yield "nnsight, a trace that stops", self.data.loop(self.traced)
        if find_spec("sae_lens") is not None:
            yield "SAELens, ActivationsStore", self.stored
            yield "SAELens, CacheActivationsRunner", self.cached

    @cached_property
    def classic(self) -> Any:
        """TransformerLens's `HookedTransformer` with the same weights."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

        given = self.data.hf.config
        config = HookedTransformerConfig(
            n_layers=given.n_layer,
            d_model=given.n_embd,
            n_heads=given.n_head,
            d_head=given.n_embd // given.n_head,
            d_vocab=given.vocab_size,
            n_ctx=given.n_positions,
            eps=given.layer_norm_epsilon,
            act_fn="gelu_new",
            normalization_type="LN",
            init_weights=False,
            device="cpu",
        )
        model = HookedTransformer(config)
        model.load_state_dict(convert_gpt2_weights(self.data.hf, config), strict=False)
        return model.eval()

    @cached_property
    def nnsight(self) -> Any:
        """nnsight around the model; it wants a tokenizer, which ids do not need."""
        from nnsight import LanguageModel

        return LanguageModel(self.data.hf, tokenizer=lensbridge.load("demo").tokens.tokenizer)

    def lens(self, part: Tensor) -> Tensor:
        """By TransformerLens, which stops before the next layer."""
        point, stop = self.data.point, self.data.layer + 1
        found = self.classic.run_with_cache(part, names_filter=[point], stop_at_layer=stop)[1]
        return torch.as_tensor(found[point])

    def traced(self, part: Tensor) -> Tensor:
        """By nnsight, whose trace ends at the layer."""
        model = self.nnsight
        with model.trace(part) as tracer:
            out = model.transformer.h[self.data.layer].output.save()
            tracer.stop()
        return torch.as_tensor(out[0] if isinstance(out, tuple) else out)

    @cached_property
    def rows(self) -> Any:
        """The ids as SAELens reads them."""
        from datasets import Dataset as Table

        return Table.from_dict({"input_ids": self.data.ids.tolist()})

    def config(self, folder: Path) -> Any:
        """The settings of SAELens for the same rows, batches and shards."""
        from sae_lens import CacheActivationsRunnerConfig

        data, width = self.data, self.data.hf.config.n_embd
        rows, positions = data.ids.shape
        return CacheActivationsRunnerConfig(
            dataset_path="",
            model_name="gpt2",
            model_batch_size=data.batch,
            hook_name=data.point,
            d_in=width,
            training_tokens=rows * positions,
            context_size=positions,
            new_cached_activations_path=str(folder),
            shuffle=False,
            device="cpu",
            buffer_size_gb=data.shard * data.batch * positions * width * 4 / 1e9,
            prepend_bos=False,
            streaming=False,
        )

    def runner(self, folder: Path) -> Any:
        """SAELens's caching runner, given the model instead of loading it by name."""
        from sae_lens import CacheActivationsRunner

        with patch("sae_lens.cache_activations_runner.load_model", lambda **_: self.classic):
            return CacheActivationsRunner(self.config(folder), override_dataset=self.rows)

    def cached(self, folder: Path) -> Tensor:
        """By SAELens's caching runner."""
        with _silent():
            found = self.runner(folder).run()
        first = found.with_format("torch")[: self.data.shard * self.data.batch]
        return torch.as_tensor(first[self.data.point]).flatten(0, 1)

    def stored(self, folder: Path) -> Tensor:
        """By a loop over SAELens's activation store."""
        with _silent():
            store = self.runner(folder / "unused").activations_store
            return self.data.loop(lambda _: store.get_raw_llm_batch()[0][None])(folder)


@contextmanager
def _silent() -> Iterator[None]:
    """A context without progress bars of `datasets` and tqdm."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    with patch("sae_lens.cache_activations_runner.tqdm", lambda given, **_: given):
        yield


def in_folder(work: Callable[[Path], object]) -> Work:
    """Work in a folder of its own, which is removed."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            work(Path(folder))

    return run

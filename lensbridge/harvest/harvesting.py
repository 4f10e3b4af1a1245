"""harvest: run a file of texts and write the activations of some points."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.manifest import Manifest
from lensbridge.harvest.rows import LAYOUTS, Layout, Place, Row, Rows
from lensbridge.harvest.shards import LINES, POSITIONS, ROWS, TOKENS, Gathered
from lensbridge.harvest.texts import TextFile
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.positions import column_owner
from lensbridge.points.names import Name, layer_of, stack_of

Told = Callable[[int, int], None]
"""Takes the tokens that were run so far, and the place in the file in bytes."""


@dataclass(frozen=True)
class Options:
    """How texts are run and written.

    Args:
        layout: "lines": a row for each text; "packed": texts joined with EOS, without padding.
        length: tokens of a row at most, BOS included.
        batch: rows that run together.
        shard_bytes: a shard is written when its tensors have as many bytes.
        dtype: the activations as another dtype; None: as the model has them.
        max_tokens: stop after about so many; None: at the end of the file.
        field: the field of the text in `.jsonl`.

    Raises:
        InputError: no such layout, or a number that is not positive.
    """

    layout: Layout = "lines"
    length: int = 128
    batch: int = 16
    shard_bytes: int = 512_000_000
    dtype: torch.dtype | None = None
    max_tokens: int | None = None
    field: str = "text"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(
                f"layout is one of {', '.join(LAYOUTS)}, not {self.layout!r}."
                f"{suggest(str(self.layout), LAYOUTS)}"
            )
        for name in ("length", "batch", "shard_bytes", "max_tokens"):
            value = getattr(self, name)
            least = 2 if name == "length" else 1
            if value is not None and value < least:
                raise InputError(f"{name}={value} is too small: it is {least} or more.")


def harvest(
    model: HookedModel,
    source: str | PathLike[str],
    points: Sequence[Name],
    out: str | PathLike[str],
    options: Options | None = None,
    told: Told | None = None,
) -> Manifest:
    """Run a file of texts and write activations to safetensors shards, with a manifest.

    If the folder has a part of the same harvest already, it goes on there: finished shards stay,
    and their texts are not run again. Memory holds one shard and one batch.

    Args:
        model: the model, in eval mode.
        source: a file with a text for each line, or a `.jsonl` file.
        points: names, short names or globs of points that have a value for each token.
        out: the folder, which is made if there is none.
        options: how texts are run and written.
        told: called after each batch.

    Returns:
        The manifest, as it is in the folder.

    Shapes: in a shard each point has `[token, ...]`, without padding.

    Raises:
        InputError: there is no such file, a point has no value for each token, or the folder has
            another harvest.
        UnknownPointError: there is no such point.

    Example:
        >>> import lensbridge, tempfile
        >>> from pathlib import Path
        >>> from lensbridge.harvest import harvest
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "texts.txt").write_text("The Eiffel Tower\\nThe Galata Tower\\n")
        >>> model = lensbridge.load("demo")
        >>> made = harvest(model, folder / "texts.txt", [("resid_post", 1)], folder / "out")
        >>> made.complete, made.tokens == model.to_tokens(["The Eiffel Tower"] * 2).numel()
        (True, True)
    """
    options = options or Options()
    file, folder = TextFile(Path(source), options.field), Path(out)
    if not file.path.is_file():
        raise InputError(f"There is no file {file.path}.")
    _check_length(model, options.length)
    names = _token_points(model, points)
    asked = _manifest(model, file, names, options)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(folder) or asked
    manifest.require_same(asked)
    if not _finished(manifest, options):
        _run(
            model,
            Rows(model, file, options.layout, options.length),
            manifest,
            folder,
            options,
            told,
        )
    return manifest


def _run(
    model: HookedModel,
    rows: Rows,
    manifest: Manifest,
    folder: Path,
    options: Options,
    told: Told | None,
) -> None:
    """Run what is left, and write shards and the manifest as they are made."""
    gathered, place = Gathered(), Place(**manifest.place)
    manifest.write(folder)

    def close(complete: bool) -> None:
        if gathered.rows:
            manifest.shards.append(gathered.write(folder, len(manifest.shards)))
        manifest.place, manifest.complete = asdict(place), complete
        manifest.write(folder)

    for batch in _batches(rows.since(place), options.batch):
        found = _activations(model, list(manifest.points), batch, gathered.rows, options.dtype)
        gathered.add(found, len(batch))
        place = batch[-1].after
        if told is not None:
            told(manifest.tokens + gathered.tokens, place.offset)
        if options.max_tokens and manifest.tokens + gathered.tokens >= options.max_tokens:
            break
        if gathered.bytes >= options.shard_bytes:
            close(complete=False)
            gathered = Gathered()
    close(complete=True)


def _activations(
    model: HookedModel,
    names: list[str],
    batch: Sequence[Row],
    first: int,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tokens of some rows and their activations, without padding. Shapes: `[token, ...]`"""
    width, pad = max(len(row.ids) for row in batch), model.tokens.pad_token_id
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in batch])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in batch])
    real = mask.bool()
    with torch.no_grad():
        _, cache = model.run_with_cache(
            ids.to(model.device),
            names_filter=names,
            return_type=None,
            dtype=dtype,
            attention_mask=mask.to(model.device),
            stop_at_layer=_last_layer(model, names),
        )
    found = {name: cache[name][real.to(cache[name].device)].cpu().contiguous() for name in names}
    where = real.nonzero()
    found[TOKENS], found[ROWS], found[POSITIONS] = (
        ids[real],
        where[:, 0] + first,
        where[:, 1].clone(),
    )
    found[LINES] = torch.tensor([line for row in batch for line in row.lines])
    return found


def _last_layer(model: HookedModel, names: Iterable[str]) -> int | None:
    """The layer before which a run can stop; None: it has to go to the end."""
    main = model.native.main
    layers = [layer_of(name) if stack_of(name) == main.prefix else None for name in names]
    inner = [layer for layer in layers if layer is not None]
    last = max(inner, default=-1) + 1
    return last if len(inner) == len(layers) and last < len(main.blocks) else None


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


def _token_points(model: HookedModel, asked: Sequence[Name]) -> list[str]:
    """The canonical names of points that have a value for each token of the text."""
    if not asked:
        raise InputError("Name at least one point. model.hook_names lists them all.")
    names = model.vocabulary.select(list(asked))
    for name in names:
        axes = model.explain(name).axes
        if not axes.startswith("b p") or column_owner(model.native, name) != "text":
            raise InputError(
                f"{name} has the axes {axes}; a harvest is of points with a value for each token "
                "of the text, which begin with 'b p'."
            )
    return names


def _manifest(model: HookedModel, file: TextFile, names: list[str], options: Options) -> Manifest:
    cfg = model.cfg
    return Manifest(
        model={
            "name": cfg.model_name,
            "class": cfg.original_architecture,
            "architecture": cfg.architecture,
            "n_layers": cfg.n_layers,
            "d_model": cfg.d_model,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        source={"name": file.path.name, "bytes": file.size, "fingerprint": file.fingerprint()},
        points={name: model.explain(name).axes.removeprefix("b p").strip() for name in names},
        options={
            "layout": options.layout,
            "length": options.length,
            "field": options.field,
            "dtype": None if options.dtype is None else str(options.dtype).removeprefix("torch."),
            "prepend_bos": model.tokens.default_prepend_bos,
        },
        place=asdict(Place()),
    )


def _finished(manifest: Manifest, options: Options) -> bool:
    """Whether nothing is left; one that stopped at fewer tokens than are asked for goes on."""
    at_end = manifest.place["offset"] >= manifest.source["bytes"]
    enough = options.max_tokens is not None and manifest.tokens >= options.max_tokens
    return manifest.complete and (at_end or enough)


def _check_length(model: HookedModel, length: int) -> None:
    most = model.cfg.n_ctx
    if most and length > most:
        raise InputError(f"length={length} is longer than the context of the model, {most}.")

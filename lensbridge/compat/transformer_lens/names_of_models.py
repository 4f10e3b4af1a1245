"""Short names of models that notebooks use, their hub ids, and their checkpoints."""

from pathlib import Path

from lensbridge.errors import InputError, LoadError, suggest

_PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_PYTHIA_BY_OLD_COUNT = {
    "19m": "70m",
    "125m": "160m",
    "350m": "410m",
    "800m": "1b",
    "1.3b": "1.4b",
    "2.7b": "2.8b",
    "6.7b": "6.9b",
    "13b": "12b",
}
_STANFORD = {
    "small": (
        "alias-{}-x21",
        "battlestar-{}-x49",
        "caprica-{}-x81",
        "darkmatter-{}-x343",
        "expanse-{}-x777",
    ),
    "medium": (
        "arwen-{}-x21",
        "beren-{}-x49",
        "celebrimbor-{}-x81",
        "durin-{}-x343",
        "eowyn-{}-x777",
    ),
}
_OWNERS = {
    "": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"),
    "facebook": tuple(
        f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
    ),
    "EleutherAI": (
        "gpt-neo-125M",
        "gpt-neo-1.3B",
        "gpt-neo-2.7B",
        "gpt-j-6B",
        "gpt-neox-20b",
    ),
    "bigscience": tuple(f"bloom-{size}" for size in ("560m", "1b1", "1b7", "3b", "7b1")),
    "meta-llama": (
        *(f"Llama-2-{size}{kind}-hf" for size in ("7b", "13b", "70b") for kind in ("", "-chat")),
        *(f"Meta-Llama-3-{size}{kind}" for size in ("8B", "70B") for kind in ("", "-Instruct")),
        *(f"Llama-3.1-{size}{kind}" for size in ("8B", "70B") for kind in ("", "-Instruct")),
        *(f"Llama-3.2-{size}{kind}" for size in ("1B", "3B") for kind in ("", "-Instruct")),
        "Llama-3.3-70B-Instruct",
    ),
    "huggyllama": ("llama-7b", "llama-13b", "llama-30b", "llama-65b"),
    "mistralai": (
        "Mistral-7B-v0.1",
        "Mistral-7B-Instruct-v0.1",
        "Mixtral-8x7B-v0.1",
        "Mixtral-8x7B-Instruct-v0.1",
        "Mistral-Nemo-Base-2407",
    ),
    "google": (
        *(f"gemma-{size}{kind}" for size in ("2b", "7b") for kind in ("", "-it")),
        *(f"gemma-2-{size}{kind}" for size in ("2b", "9b", "27b") for kind in ("", "-it")),
        *(f"gemma-3-{size}-{kind}" for size in ("1b", "4b", "12b", "27b") for kind in ("pt", "it")),
        *(f"gemma-3-270m{kind}" for kind in ("", "-it")),
    ),
    "google-bert": tuple(
        f"bert-{size}-{case}" for size in ("base", "large") for case in ("cased", "uncased")
    ),
    "google-t5": ("t5-small", "t5-base", "t5-large"),
    "Qwen": (
        *(f"Qwen1.5-{s}{k}" for s in ("0.5B", "1.8B", "4B", "7B", "14B") for k in ("", "-Chat")),
        *(f"Qwen2-{s}{k}" for s in ("0.5B", "1.5B", "7B") for k in ("", "-Instruct")),
        *(
            f"Qwen2.5-{s}{k}"
            for s in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
            for k in ("", "-Instruct")
        ),
        *(f"Qwen3-{s}" for s in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
    ),
    "microsoft": ("phi-1", "phi-1_5", "phi-2", "Phi-3-mini-4k-instruct", "phi-4"),
    "allenai": (
        "OLMo-1B-hf",
        "OLMo-7B-hf",
        "OLMo-2-0425-1B",
        "OLMo-2-1124-7B",
        "OLMoE-1B-7B-0924",
        "Olmo-3-1025-7B",
        "Olmo-3-1125-32B",
        "Olmo-3-7B-Instruct",
        "Olmo-3-7B-Think",
        "Olmo-3-32B-Think",
    ),
    "codellama": ("CodeLlama-7b-hf", "CodeLlama-7b-Instruct-hf", "CodeLlama-7b-Python-hf"),
    "openai": ("gpt-oss-20b",),
    "01-ai": ("Yi-6B", "Yi-6B-Chat", "Yi-34B", "Yi-34B-Chat"),
    "stabilityai": tuple(
        f"stablelm-{kind}-alpha-{size}" for kind in ("base", "tuned") for size in ("3b", "7b")
    ),
    "bigcode": ("santacoder",),
    "ai-forever": ("mGPT",),
    "swiss-ai": ("Apertus-8B-2509", "Apertus-8B-Instruct-2509"),
}
"""Repositories that are known by their name alone, by owner."""

_NICKNAMES = {
    "gpt2": ("gpt2-small",),
    "distilgpt2": ("distillgpt2", "distill-gpt2", "distil-gpt2", "gpt2-xs"),
    "facebook/opt-125m": ("opt", "opt-small"),
    "facebook/opt-1.3b": ("opt-medium",),
    "facebook/opt-2.7b": ("opt-large",),
    "facebook/opt-6.7b": ("opt-xl",),
    "facebook/opt-13b": ("opt-xxl",),
    "EleutherAI/gpt-neo-125M": ("gpt-neo-small", "neo-small", "neo"),
    "EleutherAI/gpt-neo-1.3B": ("gpt-neo-medium", "neo-medium"),
    "EleutherAI/gpt-neo-2.7B": ("gpt-neo-large", "neo-large"),
    "EleutherAI/gpt-j-6B": ("gpt-j", "gptj"),
    "EleutherAI/gpt-neox-20b": ("gpt-neox", "neox"),
    "EleutherAI/pythia-70m": ("pythia",),
    "EleutherAI/pythia-70m-v0": ("pythia-v0",),
    "meta-llama/Llama-2-7b-hf": ("llama-2-7b",),
    "meta-llama/Llama-2-7b-chat-hf": ("llama-2-7b-chat",),
    "meta-llama/Llama-2-13b-hf": ("llama-2-13b",),
    "meta-llama/Llama-2-13b-chat-hf": ("llama-2-13b-chat",),
    "meta-llama/Llama-2-70b-hf": ("llama-2-70b",),
    "meta-llama/Llama-2-70b-chat-hf": ("llama-2-70b-chat", "meta-llama-2-70b-chat-hf"),
    "meta-llama/Meta-Llama-3-8B": ("llama-3-8b",),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama-3-8b-instruct",),
    "huggyllama/llama-7b": ("llama-7b-hf",),
    "huggyllama/llama-13b": ("llama-13b-hf",),
    "huggyllama/llama-30b": ("llama-30b-hf",),
    "huggyllama/llama-65b": ("llama-65b-hf",),
    "mistralai/Mistral-7B-v0.1": ("mistral-7b",),
    "mistralai/Mistral-7B-Instruct-v0.1": ("mistral-7b-instruct",),
    "mistralai/Mixtral-8x7B-v0.1": ("mixtral", "mixtral-8x7b"),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": ("mixtral-instruct", "mixtral-8x7b-instruct"),
    "allenai/OLMo-1B-hf": ("olmo-1b",),
    "allenai/OLMo-7B-hf": ("olmo-7b",),
    "allenai/OLMo-2-0425-1B": ("olmo-2-1b",),
    "allenai/OLMo-2-1124-7B": ("olmo-2-7b",),
    "allenai/OLMoE-1B-7B-0924": ("olmoe",),
    "microsoft/Phi-3-mini-4k-instruct": ("phi-3",),
    "openai/gpt-oss-20b": ("gpt-oss",),
    "swiss-ai/Apertus-8B-2509": ("apertus", "apertus-8b"),
    "swiss-ai/Apertus-8B-Instruct-2509": ("apertus-instruct", "apertus-8b-instruct"),
    "stabilityai/stablelm-base-alpha-3b": ("stablelm-base-3b",),
    "stabilityai/stablelm-base-alpha-7b": ("stablelm-base-7b",),
    "stabilityai/stablelm-tuned-alpha-3b": ("stablelm-tuned-3b",),
    "stabilityai/stablelm-tuned-alpha-7b": ("stablelm-tuned-7b",),
}

_NOT_HUGGINGFACE = {
    "attn-only": "attention without an MLP",
    "attn_only": "attention without an MLP",
    "solu-": "the SoLU activation with a norm in it",
    "solu_": "the SoLU activation with a norm in it",
    "gelu-": "a format of TransformerLens's own",
    "gelu_": "a format of TransformerLens's own",
    "redwood_attn": "attention without an MLP, and shortformer positions",
    "othello-gpt": "a format of TransformerLens's own",
}
"""Models in TransformerLens's format for which transformers has no class, and why."""


def _pythia() -> dict[str, tuple[str, ...]]:
    old = {new: count for count, new in _PYTHIA_BY_OLD_COUNT.items()}
    found = {}
    for size in _PYTHIA_SIZES:
        for tail in ("", "-deduped", "-v0", "-deduped-v0"):
            names = [f"pythia-{size}{tail}"]
            if size in old:
                names += [f"pythia-{old[size]}{tail}", f"EleutherAI/pythia-{old[size]}{tail}"]
            found[f"EleutherAI/pythia-{size}{tail}"] = tuple(names)
    return found


def _tiny_stories() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for kind in ("", "Instruct-"):
        for size in ("1M", "3M", "8M", "28M", "33M", "1Layer-21M", "2Layers-33M"):
            name = f"TinyStories-{kind}{size}"
            hub = name.replace("Instruct-1L", "Instuct-1L")  # this is the spelling on the hub
            short = f"tiny-stories-{kind}{size}".replace("Layers", "L").replace("Layer", "L")
            found[f"roneneldan/{hub}"] = (name, short)
    return found


def _stanford() -> dict[str, tuple[str, ...]]:
    return {
        f"stanford-crfm/{name.format(f'gpt2-{size}')}": (
            name.format(f"gpt2-{size}"),
            f"stanford-gpt2-{size}-{letter}",
            f"gpt2-stanford-{size}-{letter}",
        )
        for size, names in _STANFORD.items()
        for letter, name in zip("abcde", names, strict=True)
    }


def _table() -> dict[str, tuple[str, ...]]:
    plain = {
        f"{owner}/{name}".lstrip("/"): tuple(dict.fromkeys((name, name.lower())))
        for owner, names in _OWNERS.items()
        for name in names
    }
    table = {**plain, **_pythia(), **_stanford(), **_tiny_stories()}
    return {hub: (*names, *_NICKNAMES.get(hub, ())) for hub, names in table.items()}


MODEL_ALIASES: dict[str, tuple[str, ...]] = _table()
"""Hub id -> the short names that mean it."""

OFFICIAL_MODEL_NAMES: list[str] = list(MODEL_ALIASES)
DEFAULT_MODEL_ALIASES: list[str] = [names[0] for names in MODEL_ALIASES.values()]
_BY_NAME = {name.lower(): hub for hub, names in MODEL_ALIASES.items() for name in (hub, *names)}


def get_official_model_name(model_name: str) -> str:
    """The hub id or folder that a name means.

    Args:
        model_name: a short name in any case, a hub id, a folder, or "demo".

    Raises:
        LoadError: a model for which transformers has no class, or an unknown name.

    Example:
        >>> get_official_model_name("gpt2-small"), get_official_model_name("pythia-160m-deduped")
        ('gpt2', 'EleutherAI/pythia-160m-deduped')
        >>> get_official_model_name("someone/something")
        'someone/something'
    """
    if model_name.lower() in _BY_NAME and not Path(model_name).is_dir():
        return _BY_NAME[model_name.lower()]
    short = model_name.lower().rpartition("/")[2]
    for start, reason in _NOT_HUGGINGFACE.items():
        if short.startswith(start) and not Path(model_name).is_dir():
            raise LoadError(
                f"{model_name!r} is not a HuggingFace model: it has {reason}, and its weights are "
                "in TransformerLens's format. Use transformer_lens itself for it."
            )
    if "/" in model_name or model_name == "demo" or Path(model_name).is_dir():
        return model_name
    raise LoadError(
        f"There is no model {model_name!r}.{suggest(model_name.lower(), _BY_NAME)} Pass a hub id "
        "(owner/name), a folder, or one of the names in MODEL_ALIASES."
    )


PYTHIA_CHECKPOINTS: list[int] = [0, *(2**i for i in range(10)), *range(1000, 144000, 1000)]
PYTHIA_V0_CHECKPOINTS: list[int] = list(range(1000, 144000, 1000))
STANFORD_CRFM_CHECKPOINTS: list[int] = [
    *range(0, 100, 10),
    *range(100, 2000, 50),
    *range(2000, 20000, 100),
    *range(20000, 400001, 1000),
]


def get_checkpoint_labels(model_name: str) -> tuple[list[int], str]:
    """The training steps that have checkpoints, and their unit: `(labels, "step")`.

    Raises:
        LoadError: this model has none.
    """
    official = get_official_model_name(model_name)
    if official.startswith("stanford-crfm/"):
        return STANFORD_CRFM_CHECKPOINTS, "step"
    if official.startswith("EleutherAI/pythia-"):
        v0 = official.endswith("-v0")
        return (PYTHIA_V0_CHECKPOINTS if v0 else PYTHIA_CHECKPOINTS), "step"
    raise LoadError(
        f"No checkpoints of {official!r} are known here, only those of Pythia and stanford-crfm "
        "models. Pass revision=... for a branch, tag or commit."
    )


def checkpoint_revision(
    model_name: str, index: int | None, value: int | None, label: int | None = None
) -> str | None:
    """The revision of a checkpoint, or None if none is asked for.

    Args:
        model_name: a model of a family with checkpoints.
        index: the index of the checkpoint; negative from the end.
        value: or its training step.
        label: another name for `value`.

    Raises:
        InputError: index and value together, or a step that has no checkpoint.

    Example:
        >>> checkpoint_revision("pythia-70m", None, 3000)
        'step3000'
        >>> checkpoint_revision("stanford-gpt2-small-a", -1, None)
        'checkpoint-400000'
    """
    value = label if value is None else value
    if index is None and value is None:
        return None
    if index is not None and value is not None:
        raise InputError("Pass checkpoint_index or checkpoint_value, not both.")
    steps, _ = get_checkpoint_labels(model_name)
    if index is not None and not -len(steps) <= index < len(steps):
        raise InputError(f"checkpoint_index={index}: {model_name} has {len(steps)} checkpoints.")
    step = steps[index] if index is not None else value
    if step not in steps:
        near = min(steps, key=lambda one: abs(one - int(step or 0)))
        raise InputError(f"{model_name} has no checkpoint of step {step}; the nearest is {near}.")
    stanford = get_official_model_name(model_name).startswith("stanford-crfm/")
    return f"checkpoint-{step}" if stanford else f"step{step}"

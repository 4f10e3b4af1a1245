"""Short names of models that notebooks use, and their hub ids."""

from pathlib import Path

from lensbridge.errors import LoadError, suggest

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
        *(f"medgemma-{size}-it" for size in ("4b", "27b", "27b-text")),
        "medgemma-4b-pt",
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

_OWN_OWNERS = ("", "neelnanda", "arthurconmy", "baidicoot")
"""Whose models on the hub these are; "" for short names. Others use such names for other models."""


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


def hub_id_of(name: str) -> str:
    """The hub id that a short name means; any other name as it is.

    Raises:
        LoadError: a model for which transformers has no class.

    Example:
        >>> hub_id_of("gpt2-small"), hub_id_of("someone/something")
        ('gpt2', 'someone/something')
    """
    if "/" not in name:
        _refuse_own_format(name)
    return _BY_NAME.get(name.lower(), name)


def _refuse_own_format(name: str) -> None:
    owner, _, short = name.lower().rpartition("/")
    if owner not in _OWN_OWNERS:
        return
    for start, reason in _NOT_HUGGINGFACE.items():
        if short.startswith(start):
            raise LoadError(
                f"{name!r} is not a HuggingFace model: it has {reason}, and its weights are in "
                "TransformerLens's format. Use transformer_lens itself for it."
            )


def refuse_misspelt(name: str) -> None:
    """Refuse a misspelt 'demo' at once; otherwise the hub would be asked for it.

    Raises:
        LoadError: with what was probably meant.
    """
    known = name == "demo" or "/" in name or Path(name).exists() or hub_id_of(name) != name
    hint = "" if known else suggest(name, ["demo"])
    if hint:
        raise LoadError(f"There is no model {name!r}.{hint}")


def similar_to(name: str) -> str:
    """A sentence with the short names that are like a name, or nothing."""
    known = "/" in name or name.lower() in _BY_NAME
    return "" if known else suggest(name.lower(), _BY_NAME)


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
    if Path(model_name).is_dir():
        return model_name
    _refuse_own_format(model_name)
    found = hub_id_of(model_name)
    if "/" in found or found in MODEL_ALIASES or model_name == "demo":
        return found
    raise LoadError(
        f"There is no model {model_name!r}.{similar_to(model_name)} Pass a hub id "
        "(owner/name), a folder, or one of the names in MODEL_ALIASES."
    )

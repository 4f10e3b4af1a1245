"""What an `LLM` of vLLM has to be like, so that its activations can be read and edited."""

from __future__ import annotations

from typing import Any

from lensbridge.errors import InputError, UnsupportedError

LOWEST, BELOW = (0, 32), (0, 33)
"""The versions of vLLM that this is tested with; the engine uses names that others may not have."""

FOR_LENSES: dict[str, Any] = {"enforce_eager": True, "enable_prefix_caching": False}
"""What `load(..., engine="vllm")` sets."""


def vllm() -> Any:
    """The module `vllm`, of a version that is known.

    Raises:
        UnsupportedError: it is not installed, or of another version.
    """
    try:
        import vllm
    except ImportError as error:
        raise UnsupportedError(
            "This needs vLLM: its own package for your GPU, or for the CPU "
            "pip install 'lensbridge[vllm]'."
        ) from error
    check_version(str(vllm.__version__))
    return vllm


def check_version(version: str) -> None:
    """Refuse versions that were not tested.

    Raises:
        UnsupportedError: the version is outside the range.
    """
    parts = version.split("+")[0].split(".")
    found = tuple(int(part) if part.isdigit() else -1 for part in parts[:2])
    if not LOWEST <= found < BELOW:
        low, below = (".".join(map(str, one)) for one in (LOWEST, BELOW))
        raise UnsupportedError(
            f"This is vLLM {version}, and lensbridge reads vLLM from {low} up to, but not with, "
            f"{below}: it needs names inside vLLM, which change. Install one of these, for example "
            f"pip install 'vllm=={low}.0'."
        )


def check(llm: Any) -> None:
    """Refuse an `LLM` whose activations would be wrong, or not there.

    Raises:
        InputError: something that is no `LLM`.
        UnsupportedError: a setting, with what to write instead.
    """
    module = vllm()
    if not isinstance(llm, module.LLM):
        raise InputError(
            f"load_vllm takes a vllm.LLM, not {type(llm).__name__}. A name is opened with "
            'lensbridge.load(name, engine="vllm").'
        )
    config = llm.llm_engine.vllm_config
    for wrong, why in _hindrances(config):
        if wrong:
            raise UnsupportedError(why)


def _hindrances(config: Any) -> list[tuple[bool, str]]:
    parallel, compiled = config.parallel_config, config.compilation_config
    mode = getattr(compiled.mode, "name", str(compiled.mode))
    graphs = getattr(compiled.cudagraph_mode, "name", str(compiled.cudagraph_mode))
    split = parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1
    return [
        (
            mode != "NONE" or graphs != "NONE",
            "This LLM compiles its model or replays CUDA graphs, where no hook is called. Make it "
            "with LLM(..., enforce_eager=True).",
        ),
        (
            split,
            "This LLM spreads its layers or requests over processes (pipeline_parallel_size, "
            "data_parallel_size), and lensbridge reads one model. Use tensor_parallel_size.",
        ),
        (
            config.speculative_config is not None,
            "This LLM drafts tokens with another model (speculative_config), and passes then have "
            "tokens that are thrown away. Make it without speculative_config.",
        ),
        (
            config.model_config.runner_type != "generate",
            "This LLM does not generate (runner). Load the model with lensbridge.load(name).",
        ),
    ]

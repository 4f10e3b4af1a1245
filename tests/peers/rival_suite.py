"""Run the tests of a checkout of TransformerLens 2 on lensbridge, and count what passes.

    python tests/peers/rival_suite.py CHECKOUT [arguments of pytest]

`transformer_lens` means lensbridge's layer there; modules of TransformerLens's own that the layer
does not have can be imported and not used. Nothing is downloaded: in the folder where the tests
run, tiny random models stand under names of the hub, with one tokenizer that knows the words of the
tests. Tests that compare with numbers of trained models fail on them, whatever library runs.
"""

import os
import subprocess
import sys
from collections import Counter
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
INTERNALS = ("components", "factories", "lit", "pretrained")
OLD = {"n_embd": 64, "n_head": 4, "n_positions": 1024}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
NEO = {"hidden_size": 64, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
T5 = {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 96}
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("gpt2", "gpt2-small"), ("GPT2LMHeadModel", {**OLD, "n_layer": 7})),
    **dict.fromkeys(("gpt2-medium", "solu-3l"), ("GPT2LMHeadModel", {**OLD, "n_layer": 3})),
    **dict.fromkeys(("solu-1l", "EleutherAI/gpt-j-6b"), ("GPT2LMHeadModel", {**OLD, "n_layer": 1})),
    "solu-2l": ("GPT2LMHeadModel", {**OLD, "n_layer": 2}),
    "attn-only-2l": ("GPT2LMHeadModel", {**OLD, "n_layer": 2}),
    "tiny-stories-1M": ("GPTNeoForCausalLM", {**NEO, "num_layers": 2}),
    **dict.fromkeys(
        ("pythia-14m", "EleutherAI/pythia-14m", "EleutherAI/pythia-70m"),
        ("GPTNeoXForCausalLM", {**SIZES, "num_hidden_layers": 6, "intermediate_size": 96}),
    ),
    "facebook/opt-125m": (
        "OPTForCausalLM",
        {**SIZES, "num_hidden_layers": 7, "ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "Qwen/Qwen2-0.5B": ("Qwen2ForCausalLM", GROUPED),
    "bigscience/bloom-560m": ("BloomForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "bert-base-cased": ("BertForPreTraining", {**SIZES, "intermediate_size": 96}),
    "t5-small": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
}
"""Names of the hub -> the class and the sizes of what stands there."""

# --- before the tests ---


def build_stand_ins(folder: Path, tests: Path) -> None:
    """Save a model and a tokenizer under each name."""
    import torch
    import transformers

    tokenizer = tokenizer_of(tests)
    end = dict.fromkeys((f"{one}_token_id" for one in ("bos", "eos", "pad")), 0)
    for name, (kind, fields) in STAND_INS.items():
        torch.manual_seed(0)
        cls = getattr(transformers, kind)
        model = cls(cls.config_class(vocab_size=len(tokenizer), **end, **fields))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def tokenizer_of(tests: Path) -> Any:
    """A byte-level BPE for which the words of the tests are single tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    files = [str(one) for one in sorted(tests.rglob("*.py"))]
    end = "<|endoftext|>"
    bpe.train(files, vocab_size=20_000, min_frequency=1, show_progress=False, special_tokens=[end])
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, model_max_length=1024, **roles)


# --- while the tests run, as a plugin of pytest ---


class _Internals(MetaPathFinder, Loader):
    """Modules of TransformerLens's own: their names can be imported, and not used."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        parts = fullname.split(".")
        mine = parts[0] == "transformer_lens" and len(parts) > 1 and parts[1] in INTERNALS
        return ModuleSpec(fullname, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Internal(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Internal(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _refuse})


def _refuse(self: Any, *_: Any, **__: Any) -> None:
    raise NotImplementedError(f"{type(self).__name__} is one of TransformerLens's own modules")


def pytest_configure(config: Any) -> None:
    """Redirect before any test is imported."""
    import lensbridge.compat

    lensbridge.compat.install()
    sys.meta_path.insert(0, _Internals())


# --- the command ---


def count(log: str) -> Counter[str]:
    """How many tests passed, failed, ... by pytest's short report."""
    known = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS")
    words = (line.split(" ", 1)[0] for line in log.splitlines())
    return Counter(word for word in words if word in known)


def main(checkout: str, *arguments: str) -> None:
    """Run the tests of a checkout and print the counts."""
    tests = Path(checkout).resolve() / "tests"
    with TemporaryDirectory() as folder:
        build_stand_ins(Path(folder), tests)
        places = [ROOT, ROOT / "adapters", Path(__file__).parent]
        command = [
            *(sys.executable, "-m", "pytest", "-p", "rival_suite", "-rA", "-q", "--tb=short"),
            *(f"--rootdir={folder}", "--import-mode=importlib", "-p", "no:cacheprovider"),
            *("--continue-on-collection-errors", *(arguments or [str(tests)])),
        ]
        path = os.pathsep.join(map(str, places))
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/hub", "COLUMNS": "300"}
        known = {**os.environ, "PYTHONPATH": path, **own}
        done = subprocess.run(command, cwd=folder, env=known, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    print(dict(count(done.stdout)))


if __name__ == "__main__":
    main(*sys.argv[1:])

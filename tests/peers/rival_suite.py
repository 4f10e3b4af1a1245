"""Run the tests of a checkout of TransformerLens 2 on lensbridge, and count what passes.

    python tests/peers/rival_suite.py CHECKOUT [PYTHON]

PYTHON is an interpreter with TransformerLens 3. The tests are then run there too, once with the
TransformerLens of the checkout and once with the installed one, on the same models: a test that
fails with both is no difference. Without PYTHON such tests are among those that differ or that
nothing explains.


`transformer_lens` means lensbridge's layer there; modules of TransformerLens's own that the layer
does not have can be imported and not used. Nothing is downloaded: in the folder where the tests
run, tiny random models stand under names of the hub (`rival_models.py`). Tests that compare with
numbers of trained models fail on them, whatever library runs.
"""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import walk_packages
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from rival_models import build_stand_ins

CONTROL = "LENSBRIDGE_CONTROL"
HUB = ("couldn't connect", "LocalEntryNotFound", "Could not download", "locate the file on the Hub")
"""What the messages say when something is not on this machine."""

MODULES = "asks for modules of TransformerLens's own"
LEFT_OUT = "asks for a function that is not included"
GUIDE = "differs as the guide says"
WORDS = "asks for the words of a message"
DIFFERENCES = {
    "unit/components/": MODULES,
    "unit/factories/": MODULES,
    "unit/pretrained_weight_conversions/": MODULES,
    "integration/test_grouped_query_attention.py::": MODULES,
    "unit/test_lit.py": LEFT_OUT,
    "unit/test_next_sentence_prediction.py": LEFT_OUT,
    "unit/utilities/test_devices.py": LEFT_OUT,
    "acceptance/test_evals.py::test_mmlu": LEFT_OUT,
    "acceptance/test_multi_gpu.py": LEFT_OUT,
    "integration/test_loading_from_pretrained.py::test_get_basic_config": LEFT_OUT,
    "unit/test_hooked_root_module.py::test_enable_hook": LEFT_OUT,
    "unit/test_hook_points.py::test_add_hook_prepend": GUIDE,
    "unit/test_gemma3_config.py": GUIDE,
    "acceptance/test_hooked_encoder": GUIDE,
    "acceptance/test_activation_cache.py::test_compute_test_head_results": GUIDE,
    "acceptance/test_activation_cache.py::test_stack_": GUIDE,
    "integration/test_hooks.py::test_conditional_hooks": GUIDE,
    "integration/test_hooks.py::test_use_attn_in_with_gqa": GUIDE,
    "integration/test_match_huggingface.py": GUIDE,
    "integration/test_start_at_layer.py::test_run_with_hooks": GUIDE,
    "integration/test_stop_at_layer.py::test_run_with_hooks": GUIDE,
    "unit/factored_matrix/test_properties.py::": GUIDE,
    "unit/factored_matrix/test_constructor.py::": WORDS,
    "integration/test_head_detector.py::": WORDS,
    "integration/test_tokenization_methods.py::test_get_token_position_not_found": WORDS,
    "unit/test_svd_interpreter.py::": WORDS,
    "unit/test_loading_from_pretrained_utilities.py::": WORDS,
}
"""The beginnings of tests that pass with TransformerLens alone -> why they fail here."""

ROOT = Path(__file__).parents[2]
INTERNALS = ("components", "factories", "lit", "pretrained", "utilities.attention")
# --- while the tests run, as a plugin of pytest ---


class _Internals(MetaPathFinder, Loader):
    """Modules of TransformerLens's own: their names can be imported, and not used."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        mine = (f"transformer_lens.{name}" for name in INTERNALS)
        known = any(f"{fullname}.".startswith(f"{name}.") for name in mine)
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Internal(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Internal(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _internal(name)


def _internal(name: str, known: Callable[[str], Any] | None = None) -> Any:
    if known is not None:
        with suppress(AttributeError, ImportError):
            return known(name)
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": _refuse})


def _refuse(self: Any, *_: Any, **__: Any) -> None:
    raise NotImplementedError(f"{type(self).__name__} is one of TransformerLens's own modules")


def pytest_collectstart(collector: Any) -> None:
    """Some tests are named after random numbers."""
    random.seed(0)


def pytest_configure(config: Any) -> None:
    """Redirect before any test is imported."""
    if CONTROL in os.environ:
        _find_stand_ins()
        return
    import lensbridge.compat

    lensbridge.compat.install()
    sys.meta_path.insert(0, _Internals())
    for module in modules_of("lensbridge.compat.transformer_lens"):
        vars(module)["__getattr__"] = partial(_internal, known=vars(module).get("__getattr__"))


def modules_of(package: str) -> Iterator[ModuleType]:
    """A package and all modules in it."""
    here = import_module(package)
    yield here
    for found in walk_packages(here.__path__, f"{package}."):
        yield import_module(found.name)


def _find_stand_ins() -> None:
    """TransformerLens itself looks for a name where the tests run, too."""
    from transformer_lens import loading_from_pretrained as loading

    known = loading.get_official_model_name
    loading.get_official_model_name = lambda name: (
        name if (Path(name) / "config.json").exists() else known(name)
    )


# --- the command ---


def outcomes(log: str) -> dict[str, tuple[str, str]]:
    """Test -> how it went, and the message, by pytest's short report."""
    found = re.findall(
        r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S.*?)(?: - (.*))?$", log, re.MULTILINE
    )
    return {test: (word, message) for word, test, message in found}


def run(checkout: Path, python: str, path: list[Path], control: bool) -> dict[str, tuple[str, str]]:
    """Run the tests with one interpreter, on stand-ins of its own."""
    with TemporaryDirectory() as folder:
        build_stand_ins(Path(folder), checkout / "tests")
        command = [
            *(python, "-m", "pytest", "-p", "rival_suite", "-rA", "-q", "--tb=short"),
            *(f"--rootdir={folder}", "--import-mode=importlib", "-p", "no:cacheprovider"),
            *("--continue-on-collection-errors", str(checkout / "tests")),
        ]
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/hub", "COLUMNS": "300"}
        own["PYTHONPATH"] = os.pathsep.join(map(str, [*path, Path(__file__).parent]))
        known = {**os.environ, **own, **({CONTROL: "1"} if control else {})}
        done = subprocess.run(command, cwd=folder, env=known, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return outcomes(done.stdout)


def passed(test: str, found: dict[str, tuple[str, str]]) -> bool:
    """Whether a test passed in a run."""
    return found.get(test, ("",))[0] in ("PASSED", "XFAIL")


def kind_of(test: str, message: str, controls: list[dict[str, tuple[str, str]]]) -> str:
    """Why a test fails here."""
    if controls and not any(passed(test, one) for one in controls):
        said = message + "".join(one.get(test, ("", ""))[1] for one in controls)
        hub = any(word in said for word in HUB)
        return f"fails with TransformerLens, too{': it needs the hub' if hub else ''}"
    found = (why for start, why in DIFFERENCES.items() if test.startswith(start))
    return next(found, "not explained")


def main(checkout: str, *controls: str) -> None:
    """Run the tests of a checkout and print the counts, and the tests that nothing explains."""
    root = Path(checkout).resolve()
    here = run(root, sys.executable, [ROOT, ROOT / "adapters"], control=False)
    others = [run(root, python, path, True) for python in controls for path in ([root], [])]
    kinds = {
        test: "passes" if passed(test, here) else kind_of(test, message, others)
        for test, (_, message) in here.items()
    }
    for kind, number in Counter(kinds.values()).most_common():
        print(number, kind)
    for test, kind in kinds.items():
        if kind == "not explained":
            print(f"  {test}: {here[test][1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a trace for nnsight says, without nnsight: calls of torch as Python, and what is refused."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lensbridge.engines import NNsight
from lensbridge.engines.nnsight.expressions import (
    call_of,
    index,
    is_index,
    literal,
    statement_of,
)
from lensbridge.errors import InputError, UnsupportedError


def calls() -> Iterator[Callable[[Tensor, Tensor], Any]]:
    yield lambda a, b: a + b
    yield lambda a, b: 1 - a
    yield lambda a, b: -a / (b**2 + 1)
    yield lambda a, b: a @ b.mT
    yield lambda a, b: (a > b) & ~(a > 0.5)
    yield lambda a, b: a[:, 1:, None]
    yield lambda a, b: a[..., -1]
    yield lambda a, b: a[[0, 1], 1:3]
    yield lambda a, b: torch.where(a > b, a, float("-inf"))
    yield lambda a, b: torch.nn.functional.layer_norm(a, (4,), b[0, 0], eps=1e-6)
    yield lambda a, b: torch.einsum("bij, bij -> bi", a, b)
    yield lambda a, b: a.to(torch.float64).mean(-1, keepdim=True)
    yield lambda a, b: torch.cat([a, b], dim=-1).unflatten(-1, (2, 4))
    yield lambda a, b: a.max(dim=-1).values.log_softmax(-1)
    yield lambda a, b: a.clone().index_fill_(1, torch.tensor([1]), 3.0)


class Written(TorchFunctionMode):
    """Writes each call as Python and runs that too: both give the same."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names: dict[str, Any] = {"torch": torch}

        def name(tensor: Tensor) -> str:
            names[f"t{len(names)}"] = tensor
            return f"t{len(names) - 1}"

        texts = [literal(one, name, "'cpu'") for one in args]
        if is_index(func):
            texts[1] = index(args[1], name, "'cpu'")
        keywords = {key: literal(one, name, "'cpu'") for key, one in kwargs.items()}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.count += 1
            assert torch.equal(eval(call_of(func, texts, keywords), names), out)
        return out


@pytest.mark.parametrize("call", list(calls()))
def test_a_call_as_text_gives_what_the_call_gives(call: Callable[..., Any]) -> None:
    a, b = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    with Written() as written:
        call(a, b)
    assert written.count


def test_a_statement_writes_to_a_place() -> None:
    text = statement_of(Tensor.__setitem__, ["v1", index((slice(None), 2), str, "d"), "0"])
    assert text == "v1[:, 2] = 0"
    assert statement_of(Tensor.add, ["v1", "v2"]) is None


def test_what_is_neither_data_nor_public_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a function is neither"):
        literal(lambda grad: grad, str, "d")
    with pytest.raises(UnsupportedError, match="public functions of torch"):
        call_of(torch._weight_norm, ["v1", "v2"], {})


@pytest.mark.skipif(find_spec("nnsight") is not None, reason="nnsight is installed")
def test_without_nnsight_the_engine_says_what_to_install() -> None:
    with pytest.raises(InputError, match=r"pip install 'lensbridge\[nnsight\]'"):
        NNsight("demo", remote=True)

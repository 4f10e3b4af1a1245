"""FactoredMatrix against the product itself, in float64, over leading axes and widths."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, build
from torch import Tensor
from torch.testing import assert_close

import lensbridge
from lensbridge.errors import ShapeError
from lensbridge.native.linear import Linear
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.tensors.layer_stack import LayerStack

LEADING = [(), (3,), (2, 3), (1, 3), (2, 1), (1,)]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@st.composite
def products(draw: st.DrawFn) -> FactoredMatrix:
    """Factors whose leading axes broadcast, with an inner width below and above the outer ones."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    l, m, r = (draw(st.sampled_from([1, 2, 5, 8])) for _ in range(3))
    left, right = (draw(st.sampled_from(LEADING)) for _ in range(2))
    return FactoredMatrix(rand(*left, l, m), rand(*right, m, r))


def both(product: FactoredMatrix) -> tuple[FactoredMatrix, Tensor]:
    """A factored matrix and its product by hand."""
    return product, torch.einsum("...lm,...mr->...lr", product.A, product.B)


@given(products())
def test_sizes_are_those_of_the_product(product: FactoredMatrix) -> None:
    product, whole = both(product)
    assert product.shape == whole.shape
    assert product.ndim == whole.ndim
    assert product.has_leading_dims == (whole.ndim > 2)
    assert (product.ldim, product.rdim) == whole.shape[-2:]
    assert product.mdim == product.A.shape[-1] == product.B.shape[-2]
    assert product.pair == (product.A, product.B)
    assert_close(product.AB, whole)
    assert_close(product.T.AB, whole.mT)
    assert repr(product) == f"FactoredMatrix(shape={tuple(whole.shape)}, mdim={product.mdim})"


@given(products())
def test_svd_is_one(product: FactoredMatrix) -> None:
    product, whole = both(product)
    U, S, V = product.svd()
    k = min(product.ldim, product.mdim, product.rdim)
    assert (U.shape[-2:], S.shape[-1], V.shape[-2:]) == ((product.ldim, k), k, (product.rdim, k))
    assert_close(U * S.unsqueeze(-2) @ V.mT, whole)
    eye = torch.eye(k, dtype=torch.float64).expand(*whole.shape[:-2], k, k)
    assert_close(U.mT @ U, eye)
    assert_close(V.mT @ V, eye)
    assert_close(S, torch.linalg.svdvals(whole)[..., :k])
    assert_close(product.norm(), whole.square().sum((-2, -1)).sqrt())
    assert_close(product.collapse_l().mT @ product.collapse_l(), whole.mT @ whole)
    assert_close(product.collapse_r() @ product.collapse_r().mT, whole @ whole.mT)
    even = product.make_even()
    assert_close(even.AB, whole)
    assert_close(even.A.mT @ even.A, torch.diag_embed(S))
    assert_close(even.B @ even.B.mT, torch.diag_embed(S))
    assert product.Vh is product.V


@given(products(), st.data())
def test_products_with_tensors_and_factored_ones(product: FactoredMatrix, data: Any) -> None:
    product, whole = both(product)
    n = data.draw(st.sampled_from([1, 4, 9]))
    leading = data.draw(st.sampled_from([(), *(x for x in LEADING if len(x) < whole.ndim - 1)]))
    right, left = rand(*leading, product.rdim, n), rand(*leading, n, product.ldim)
    if not _broadcasts(leading, whole.shape[:-2]):
        with pytest.raises(ShapeError, match="leading axes"):
            product @ right
        return
    assert_close((product @ right).AB, whole @ right)
    assert_close((left @ product).AB, left @ whole)
    assert (product @ right).mdim <= product.mdim
    assert (left @ product).mdim <= product.mdim
    vector, other_vector = rand(product.rdim), rand(product.ldim)
    assert_close(product @ vector, whole @ vector)
    assert_close(other_vector @ product, other_vector @ whole)
    width = data.draw(st.sampled_from([1, 3, 9]))
    other = FactoredMatrix(rand(product.rdim, width), rand(*leading, width, n))
    assert_close((product @ other).AB, whole @ (other.A @ other.B))
    assert (product @ other).mdim == min(product.mdim, product.rdim, width)
    assert_close((other.T @ product.T).AB, (whole @ (other.A @ other.B)).mT)


def _broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return True


@given(products())
def test_numbers_multiply_and_divide(product: FactoredMatrix) -> None:
    product, whole = both(product)
    number = torch.tensor([[2.5]], dtype=torch.float64)
    for found, expected in (
        (product * 3, whole * 3),
        (0.5 * product, whole * 0.5),
        (product / 4, whole / 4),
        (product * number, whole * 2.5),
        (number[0, 0] * product, whole * 2.5),
        (product / number, whole / 2.5),
    ):
        assert isinstance(found, FactoredMatrix)
        assert found.shape == whole.shape
        assert_close(found.AB, expected)


@pytest.mark.parametrize("inner", [2, 5, 8])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_eigenvalues_are_those_of_the_product(leading: tuple[int, ...], inner: int) -> None:
    product, whole = both(FactoredMatrix(rand(*leading, 5, inner), rand(*leading, inner, 5)))
    found = product.eigenvalues
    assert found.shape == (*leading, inner)
    # sorted the same way: the sums of powers tell multisets apart, zeros aside
    expected = torch.linalg.eigvals(whole)
    for power in range(1, 6):
        assert_close((found**power).sum(-1), (expected**power).sum(-1))
    assert_close(product.BA, product.B @ product.A)


INDICES: list[Any] = [
    1,
    -1,
    (0, 2),
    (slice(None), 1),
    (slice(0, 1), slice(1, None)),
    ...,
    (..., slice(1, 4), slice(None)),
    (..., slice(2)),
    (1, ..., slice(0, 5, 2), slice(3)),
    None,
    (None, 1, None),
    (slice(None), None, 2),
    (..., None, slice(None), slice(None)),
    (..., None, slice(None)),
    (..., None),
    (..., None, None),
    (1, ..., slice(2, 4), None, slice(1, 3), None),
    (..., None, slice(1, 2), None, slice(None), None, None),
    torch.tensor([1, 0, 1]),
    ([1, 0], [2, 2]),
    (slice(None), [0, 2]),
    (torch.tensor([[True, False, True], [False, True, False]]),),
    (torch.tensor(1), torch.tensor(2)),
    (..., [0, 2, 2], slice(None)),
    (..., slice(None), torch.tensor([1, 0])),
    (..., torch.tensor([True, False, True, True, False]), slice(None)),
    ([0, 1], None, [1, 1], slice(1, 3)),
    ([False, True],),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_is_that_of_the_product(index: Any) -> None:
    product, whole = both(FactoredMatrix(rand(2, 3, 5, 4), rand(2, 3, 4, 6)))
    found = product[index]
    assert isinstance(found, FactoredMatrix)
    index = torch.tensor(index[0]) if index == ([False, True],) else index
    assert found.shape == whole[index].shape
    assert_close(found.AB, whole[index])


def test_rows_and_columns_keep_their_axis_and_are_chosen_each_on_their_own() -> None:
    product, whole = both(FactoredMatrix(rand(2, 5, 4), rand(2, 4, 6)))
    assert_close(product[..., 3, 2].AB, whole[..., 3:4, 2:3])
    assert_close(product[..., -1].AB, whole[..., -1:])
    assert_close(product[1, -1].AB, whole[1, -1:])
    assert_close(product[1, :, -6].AB, whole[1, :, :1])
    assert_close(product[0, [0, 2, 4], [5, 1]].AB, whole[0][[0, 2, 4]][:, [5, 1]])
    assert_close(product[[1, 0], 2].AB, whole[[1, 0], 2:3])
    mask = torch.tensor([True, False, False, True, False])
    assert_close(product[1, mask, 0].AB, whole[1, mask][:, :1])
    assert_close(product.T[1, 2, 3].AB, whole[1, 3:4, 2:3])


@pytest.mark.parametrize(
    "index",
    [2, -3, (0, 5), (..., 6), (..., -7), (0, 0, 0, 0), (..., ...), True,
     (..., torch.ones(5, 6, dtype=torch.bool)), (torch.ones(2, 5, dtype=torch.bool),),
     (..., torch.zeros(2, 2, dtype=torch.long), slice(None))],
    ids=str,
)  # fmt: skip
def test_an_index_that_does_not_fit_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError):
        FactoredMatrix(rand(2, 5, 4), rand(2, 4, 6))[index]


def test_iterating_corner_and_new_axes() -> None:
    product, whole = both(FactoredMatrix(rand(2, 5, 4), rand(4, 6)))
    assert len(product) == 2
    assert_close(torch.stack([one.AB for one in product]), whole)
    assert_close(torch.cat([row.AB for row in product[0]]), whole[0])
    assert_close(product.get_corner(2), whole[:2, :2, :2])
    assert_close(product[0].get_corner(), whole[0, :3, :3])
    for k in (0, 1, -4, -3):
        assert_close(product.unsqueeze(k).AB, whole.unsqueeze(k))
    for k in (2, 3, -1, -2, -5):
        with pytest.raises(ShapeError, match="before the rows"):
            product.unsqueeze(k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_algebra_of_short_numbers_is_done_in_float32(dtype: torch.dtype) -> None:
    A, B = torch.randn(2, 6, 3).to(dtype), torch.randn(2, 3, 6).to(dtype)
    short, wide = FactoredMatrix(A, B), FactoredMatrix(A.float(), B.float())
    assert short.dtype == short.AB.dtype == short[0].dtype == dtype
    for name in ("U", "S", "V"):
        assert torch.equal(getattr(short, name), getattr(wide, name))
    assert short.norm().dtype == torch.float32
    assert torch.equal(short.norm(), wide.norm())
    assert_close(short.make_even().AB, A.float() @ B.float())
    reverse = torch.linalg.eigvals((B @ A).float())
    assert torch.equal(short.eigenvalues, reverse)
    assert short.to(torch.float64).dtype == torch.float64


def test_a_norm_survives_factors_that_cancel() -> None:
    u, v, small = rand(50, 1), rand(1, 50), rand(50, 1)
    product = FactoredMatrix(torch.cat([u, u + 1e-6 * small], 1), torch.cat([v, -v]))
    assert_close(product.norm(), 1e-6 * small.norm() * v.norm(), rtol=1e-8, atol=0)


def test_gradients_flow_and_equal_those_of_the_product() -> None:
    A, B = rand(7, 3).requires_grad_(), rand(3, 5).requires_grad_()
    product = FactoredMatrix(A, B)
    for found, expected in (
        (product.norm(), (A @ B).norm()),
        (product.S.sum(), torch.linalg.svdvals(A @ B)[:3].sum()),
        ((product @ rand(5, 2).fill_(1.0)).norm(), (A @ B @ torch.ones(5, 2).double()).norm()),
    ):
        one, other = (torch.autograd.grad(x, (A, B)) for x in (found, expected))
        assert_close(one, other)
    assert not product.detach().A.requires_grad
    with torch.no_grad():
        kept = product.S
    assert not kept.requires_grad
    assert product.S.requires_grad


def test_a_decomposition_is_kept_until_a_tensor_is_written_to(monkeypatch) -> None:
    runs = []
    original = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *args, **how: runs.append(1) or original(*args, **how)
    )
    product = FactoredMatrix(rand(7, 3), rand(3, 5))
    first = product.svd()
    assert product.U is first.U
    assert product.V is first.V
    assert len(runs) == 1
    product.A[0] = 0.0
    assert_close(product.S, torch.linalg.svdvals(product.AB)[:3])
    assert len(runs) == 2
    product.S.zero_()
    assert product.S.abs().sum() > 0


def test_shapes_that_do_not_meet_are_told() -> None:
    with pytest.raises(ShapeError, match=r"\(5, 3\) @ \(4, 2\)"):
        FactoredMatrix(rand(5, 3), rand(4, 2))
    with pytest.raises(ShapeError, match="cannot be broadcast"):
        FactoredMatrix(rand(2, 5, 3), rand(3, 3, 2))
    with pytest.raises(ShapeError, match=r"A of a FactoredMatrix.*\(3,\)"):
        FactoredMatrix(rand(3), rand(3, 2))
    with pytest.raises(ShapeError, match=r"B of a FactoredMatrix.*list"):
        FactoredMatrix(rand(3, 2), [[1.0]])  # type: ignore[arg-type]
    product = FactoredMatrix(rand(2, 5, 3), rand(2, 3, 4))
    for wrong in (rand(3, 2), rand(3), rand(3, 4, 2), FactoredMatrix(rand(3, 1), rand(1, 3))):
        with pytest.raises(ShapeError):
            product @ wrong
    for wrong in (rand(2, 4), rand(4), rand(3, 2, 5)):
        with pytest.raises(ShapeError):
            wrong @ product
    with pytest.raises(ShapeError, match="square"):
        _ = product.BA
    with pytest.raises(ShapeError, match="square"):
        _ = product.eigenvalues
    with pytest.raises(ShapeError, match="one number"):
        product * rand(2)
    with pytest.raises(TypeError):
        product @ "x"  # type: ignore[operator]


def test_the_product_of_thin_factors_is_never_made(monkeypatch) -> None:
    """Whatever is computed, no tensor of the product's size comes up."""
    product = FactoredMatrix(rand(3, 300, 2), rand(3, 2, 300))
    other = FactoredMatrix(rand(300, 4), rand(4, 300))
    largest = _largest_tensor_while(
        lambda: [
            product.svd(), product.norm(), product.eigenvalues, product.make_even(),
            (product @ other).norm(), (rand(300, 5).mT @ product).norm(), product @ rand(300),
            rand(300) @ product, (product * 2).T[1, 7], product[..., 3, :].AB, product.get_corner(),
        ]
    )  # fmt: skip
    assert largest < 300 * 300


def _largest_tensor_while(run: Any) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    sizes = [0]

    class Measure(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
            return out

    with Measure():
        run()
    return max(sizes)


def test_lazy_stacks_stay_lazy(monkeypatch) -> None:
    model = lensbridge.load(build(Shape("llama", layers=3)))
    whole = model.W_V_expanded.full() @ model.W_O.full()
    product = FactoredMatrix(model.W_V_expanded, model.W_O)
    assert isinstance(product.A, LayerStack)
    assert_close(product.AB, whole)
    assert_close(product.svd().S, torch.linalg.svdvals(whole)[..., :6], rtol=1e-4, atol=1e-5)
    right = torch.randn(28, 2)
    assert_close((product @ right).AB, whole @ right)
    assert_close(product[:, 1].AB, whole[:, 1])
    read: list[Linear] = []
    original = Linear.weight
    monkeypatch.setattr(Linear, "weight", lambda self: read.append(self) or original(self))
    layer = model.hf_model.model.layers[2].self_attn
    assert_close(product[2, 3].AB, whole[2, 3])
    assert [one.module for one in read] == [layer.v_proj, layer.o_proj]
    transposed = product.T
    del read[:]
    assert_close(transposed[2, 3].AB, whole[2, 3].mT)
    assert [one.module for one in read] == [layer.o_proj, layer.v_proj]

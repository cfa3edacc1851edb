"""The algebra against plain numpy: whole maps evaluated at once, and published width growths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_grow.state.axes import Axis, AxisRule, Role
from megatron_grow.state.axis_map import FRESH, AxisMap
from megatron_grow.state.axis_maps import Gather, Identity
from megatron_grow.state.boxes import Box, full, shape_of, slices
from megatron_grow.state.fresh import fresh
from megatron_grow.state.maps import TensorMap, Term, all_fresh, identity
from megatron_grow.state.materialise import materialise, sources
from megatron_grow.state.mixes import Dense, Padded, mean
from megatron_grow.state.tensors import Constant, Init, LogicalTensor, Normal
from tests.state.test_boxes import boxes_in

SEED = 7
ZERO = Constant(0.0)


def tensor(shape: tuple[int, ...], init: Init = ZERO) -> LogicalTensor:
    axes = tuple(Axis(AxisRule(f"axis{i}"), size, Role.INDEX) for i, size in enumerate(shape))
    return LogicalTensor("target", axes, (1,) * len(shape), init)


def evaluate(tensor_map: TensorMap, stored: dict[str, np.ndarray]) -> np.ndarray:
    """The whole target, term by term and axis by axis, without segments or slices."""
    target = tensor_map.target
    total = np.zeros(target.shape, np.float32)
    covered = np.zeros(target.shape, bool)
    for term in tensor_map.terms:
        values, drawn = stored[term.source], np.ones(target.shape, bool)
        for axis, how in enumerate(term.axes):
            along = [-1 if i == axis else 1 for i in range(len(target.shape))]
            if isinstance(how, Gather):
                index = np.array(how.index)
                drawn &= (index != FRESH).reshape(along)
                values = np.take(values, np.where(index == FRESH, 0, index), axis)
                if how.scale is not None:
                    # In fp64, rounded once.
                    values = (values * np.array(how.scale).reshape(along)).astype(np.float32)
            elif isinstance(how, Dense):
                values = np.moveaxis(np.tensordot(how.matrix.numpy(), values, (1, axis)), 0, axis)
        total = np.where(drawn, total + values, total)
        covered |= drawn
    fill = fresh(target, full(target.shape), tensor_map.fresh, SEED).numpy()
    return np.where(covered, total, fill)


def slice_of(
    tensor_map: TensorMap, box: Box, stored: dict[str, np.ndarray]
) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """What ``materialise`` makes of ``box``, and what it read for that."""
    asked: list[tuple[str, Box]] = []

    def read(key: str, kind: str, wanted: Box) -> torch.Tensor:
        assert kind == "exp_avg"
        asked.append((key, wanted))
        return torch.from_numpy(stored[key][slices(wanted)])

    values = materialise(tensor_map, "exp_avg", box, read, SEED)
    assert values.dtype == torch.float32
    return values.numpy(), asked


def whole(tensor_map: TensorMap, stored: dict[str, np.ndarray]) -> np.ndarray:
    return slice_of(tensor_map, full(tensor_map.target.shape), stored)[0]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def axis_maps(draw: st.DrawFn, source: int, target: int, dense: bool) -> AxisMap:
    kinds = ["gather", "scaled"] + ["dense"] * dense + ["identity"] * (source == target)
    kind = draw(st.sampled_from(kinds))
    if kind == "identity":
        return Identity()
    if kind == "dense":
        return Dense(torch.from_numpy(normal(target, source, seed=draw(st.integers(0, 99)))))
    index = draw(
        st.lists(st.integers(FRESH, source - 1), min_size=target, max_size=target).map(tuple)
    )
    if kind == "gather":
        return Gather(index)
    return Gather(index, tuple(draw(st.sampled_from([0.5, 1 / 3, 1.0, -2.0])) for _ in index))


@st.composite
def tensor_maps(
    draw: st.DrawFn, *, dense: bool, most_terms: int = 3
) -> tuple[TensorMap, dict[str, np.ndarray]]:
    """A map, and the source tensors that it draws on."""
    # Up to 24 entries, so that gathers of more runs than are read one by one occur.
    shape = tuple(draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)))
    terms, stored = [], {}
    for number in range(draw(st.integers(1, most_terms))):
        source = tuple(draw(st.one_of(st.just(size), st.integers(1, 6))) for size in shape)
        key = f"source{number}"
        stored[key] = normal(*source, seed=number)
        axes = tuple(draw(axis_maps(a, b, dense)) for a, b in zip(source, shape, strict=True))
        terms.append(Term(key, axes))
    init = draw(st.sampled_from([ZERO, Constant(1.5), Normal(0.02)]))
    return TensorMap(tensor(shape, init), tuple(terms), init), stored


@given(st.data(), tensor_maps(dense=False))
def test_any_slice_is_the_slice_of_the_whole(
    data: st.DataObject, case: tuple[TensorMap, dict[str, np.ndarray]]
) -> None:
    """Bit for bit, in gathers with and without scales, fresh entries and sums of terms."""
    tensor_map, stored = case
    box = data.draw(boxes_in(tensor_map.target.shape))
    values, asked = slice_of(tensor_map, box, stored)
    assert values.shape == shape_of(box)
    assert np.array_equal(values, evaluate(tensor_map, stored)[slices(box)])
    assert asked == sources(tensor_map, box)


@given(st.data(), tensor_maps(dense=True))
def test_dense_maps(data: st.DataObject, case: tuple[TensorMap, dict[str, np.ndarray]]) -> None:
    tensor_map, stored = case
    box = data.draw(boxes_in(tensor_map.target.shape))
    values, asked = slice_of(tensor_map, box, stored)
    truth = evaluate(tensor_map, stored)[slices(box)]
    assert values == pytest.approx(truth, rel=1e-4, abs=1e-4)
    assert np.array_equal(values, whole(tensor_map, stored)[slices(box)])  # to the bit
    assert asked == sources(tensor_map, box)


@given(st.data(), tensor_maps(dense=False, most_terms=1))
def test_reads_only_what_the_slice_needs(
    data: st.DataObject, case: tuple[TensorMap, dict[str, np.ndarray]]
) -> None:
    """Each entry that the slice draws on is read; each range read begins and ends with one."""
    tensor_map, _ = case
    box = data.draw(boxes_in(tensor_map.target.shape))
    (term,) = tensor_map.terms
    needed = []
    for how, (start, stop) in zip(term.axes, box, strict=True):
        index = range(start, stop) if isinstance(how, Identity) else how.index[start:stop]
        needed.append(set(index) - {FRESH})
    read: list[set[int]] = [set() for _ in box]
    for key, wanted in sources(tensor_map, box):
        assert key == term.source
        for axis, (start, stop) in enumerate(wanted):
            read[axis] |= set(range(start, stop))
            assert {start, stop - 1} <= needed[axis]
    assert all(have >= want for have, want in zip(read, needed, strict=True)) or not all(needed)


def test_a_few_runs_are_read_apart_and_many_as_one_span() -> None:
    far_apart = TensorMap(tensor((3,)), (Term("s", (Gather((0, 1, 90)),)),), ZERO)
    assert sources(far_apart, ((0, 3),)) == [("s", ((0, 2),)), ("s", ((90, 91),))]
    backwards = TensorMap(tensor((20,)), (Term("s", (Gather(tuple(range(19, -1, -1))),)),), ZERO)
    assert sources(backwards, ((0, 20),)) == [("s", ((0, 20),))]
    assert sources(backwards, ((5, 6),)) == [("s", ((14, 15),))]


def test_identity_and_all_fresh() -> None:
    target = tensor((3, 4), Normal(0.5))
    stored = {"target": normal(3, 4)}
    assert np.array_equal(whole(identity(target), stored), stored["target"])
    values, asked = slice_of(all_fresh(target), full(target.shape), stored)
    assert asked == []
    assert np.array_equal(values, fresh(target, full(target.shape), Normal(0.5), SEED).numpy())


def test_which_entries_the_source_had() -> None:
    """Of copies the first; nothing that is new, mixed, or begins as another tensor."""

    def had(*axes: AxisMap, source: str = "target", size: int = 5) -> list[bool]:
        terms = tuple(Term(source, (axis,)) for axis in axes)
        return TensorMap(tensor((size,)), terms, ZERO).old(0).tolist()

    assert had(Identity()) == [True] * 5
    assert had(Gather((0, 1, FRESH, 0, 2))) == [True, True, False, False, True]
    assert had(Gather((1, 0, 1, 0, FRESH))) == [True, True, False, False, False]
    assert had(Padded(Gather((2, 0, 1)), mean(3))) == [True, True, True, False, False]
    assert had(Dense(torch.eye(5))) == [False] * 5
    # a block on the diagonal for each term
    blocks = Gather((0, 1, FRESH, FRESH)), Gather((FRESH, FRESH, 0, 1))
    assert had(*blocks, size=4) == [True, True, False, False]
    assert had(Identity(), source="embedding") == [False] * 5
    assert had() == [False] * 5


def test_first_only_keeps_the_first_of_each_copy() -> None:
    assert Gather((0, 1, 0, FRESH, 1, 2)).first_only() == Gather((0, 1, FRESH, FRESH, FRESH, 2))
    assert Gather((1, 1), (0.5, 0.25)).first_only() == Gather((1, FRESH), (0.5, 0.25))


# Of each kind of axis map one of five entries, from four; and what all kinds can do, by matrices.

OF_FOUR: dict[str, AxisMap] = {
    "gather": Gather((3, 0, FRESH, 1, 3), (2.0, 1.0, 1.0, 0.5, -4.0)),
    "dense": Dense(torch.tensor([[1.0, 2, 3, 4], [0] * 4, [0, 1, 0, 0], [1] * 4, [0, 0, -1, 2]])),
    "padded": Padded(Gather((1, 0, 3), (0.5, 2.0, 1.0)), mean(4)),
}


def matrix(how: AxisMap, source: int, target: int) -> np.ndarray:
    """(target, source): what a map makes of an identity matrix."""
    unit = np.eye(source, dtype=np.float32)
    return whole(
        TensorMap(tensor((target, source)), (Term("w", (how, Identity())),), ZERO), {"w": unit}
    )


@pytest.mark.parametrize("kind", OF_FOUR)
def test_a_map_after_another_is_the_product(kind: str) -> None:
    how, first = OF_FOUR[kind], Gather((2, FRESH, 0, 2))
    product = matrix(how, 4, 5) @ matrix(first, 3, 4)
    assert product.any()
    assert np.array_equal(matrix(how.after(first), 3, 5), product)
    assert np.array_equal(matrix(how.after(Identity()), 4, 5), matrix(how, 4, 5))
    assert np.array_equal(matrix(Identity().after(first), 3, 4), matrix(first, 3, 4))


@pytest.mark.parametrize("kind", OF_FOUR)
def test_powers(kind: str) -> None:
    """Moments that carry squares, and mean squares of entries that are independent."""
    how = OF_FOUR[kind]
    squares = matrix(how, 4, 5) ** 2
    assert np.array_equal(matrix(how.to_power(2), 4, 5), squares)
    assert np.array_equal(matrix(how.to_power(1), 4, 5), matrix(how, 4, 5))
    rms = [1.0, 3.0, 0.5, 2.0]
    truth = squares @ np.square(rms)
    for start, stop in ((0, 5), (1, 4), (3, 5), (4, 5), (0, 2)):
        found = how.powers(rms, start, stop)
        assert [power or 0.0 for power in found] == truth[start:stop].tolist()
    assert how.powers(rms, 2, 3) == ([None] if kind == "gather" else [truth[2]])
    assert Identity().powers(rms, 1, 3) == [9.0, 0.25]


@pytest.mark.parametrize("copies", [3, 5, 6, 7, 48])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_share_is_a_division(copies: int, axis: int) -> None:
    """To the bit: every published code divides, and 1/3 is no fp32."""
    weight = normal(40, 30)
    share = Gather(tuple(range(weight.shape[axis])), (1 / copies,) * weight.shape[axis])
    axes = tuple(share if i == axis else Identity() for i in range(2))
    made = whole(TensorMap(tensor((40, 30)), (Term("w", axes),), ZERO), {"w": weight})
    assert np.array_equal(made, weight / np.float32(copies))


def test_a_mean_is_rounded_once() -> None:
    weight = normal(40, 30)
    axes = (Padded(Gather(tuple(range(40))), mean(40)), Identity())
    made = whole(TensorMap(tensor((41, 30)), (Term("w", axes),), ZERO), {"w": weight})
    assert np.array_equal(made[40], weight.mean(0, dtype=np.float64).astype(np.float32))


# Published growths in width, which the algebra must be able to say. Weights are (out, in).


def duplicate(size: int, target: int, seed: int) -> np.ndarray:
    """A Net2Net map: every source entry at its own place, then random duplicates."""
    extra = np.random.default_rng(seed).integers(0, size, target - size)
    return np.concatenate([np.arange(size), extra])


def copied(index: np.ndarray) -> Gather:
    return Gather(tuple(index.tolist()))


def shared(index: np.ndarray) -> Gather:
    """Duplicates of an input share its weight."""
    multiplicity = np.bincount(index)
    return Gather(tuple(index.tolist()), tuple((1 / multiplicity[index]).tolist()))


def grow(rows: Gather, columns: Gather, weight: np.ndarray) -> np.ndarray:
    target = tensor((len(rows.index), len(columns.index)))
    return whole(TensorMap(target, (Term("w", (rows, columns)),), ZERO), {"w": weight})


def test_net2net_is_a_gather_with_scales() -> None:
    """Chen et al. 2016 (arXiv 1511.05641), in the matrix form that LiGO (2303.00980) gives it.

    With W as (in, out): W' = [I; S^T] D^-1 W [I S].
    """
    weight = normal(5, 4)  # (out, in)
    outputs, inputs = duplicate(5, 8, seed=1), duplicate(4, 7, seed=2)
    expand_out = np.eye(5)[:, outputs]  # [I S]
    expand_in = np.eye(4)[inputs]  # [I; S^T]
    multiplicity = np.diag(np.bincount(inputs).astype(float))
    truth = (expand_in @ np.linalg.inv(multiplicity) @ weight.T.astype(float) @ expand_out).T
    grown = grow(copied(outputs), shared(inputs), weight)
    assert grown == pytest.approx(truth, rel=1e-6)
    assert grown @ weight[0][inputs] == pytest.approx((weight @ weight[0])[outputs], rel=1e-5)


def test_feed_forward_growth_preserves_the_function() -> None:
    """bert2BERT's FPI (arXiv 2110.07143) with a random map 20 -> 33; CompoundGrow's tile x4 / 4."""
    inner, outer, x = normal(20, 6, seed=1), normal(6, 20, seed=2), normal(6, seed=3)
    before = outer @ np.maximum(inner @ x, 0.0)
    tile = np.tile(np.arange(20), 4)
    for index in (duplicate(20, 33, seed=4), tile):
        same = Gather(tuple(range(6)))
        wide_in, wide_out = grow(copied(index), same, inner), grow(same, shared(index), outer)
        assert wide_out @ np.maximum(wide_in @ x, 0.0) == pytest.approx(before, rel=1e-5)
    assert np.array_equal(grow(same, shared(tile), outer), np.tile(outer, (1, 4)) / 4)


def test_hypercloning_doubles_by_gathers() -> None:
    """arXiv 2409.12903: W -> repeat(2, 2) / 2; embedding repeated; head repeat(1, 2) / 2."""
    tile = lambda size: np.tile(np.arange(size), 2)  # noqa: E731
    weight, embedding, head = normal(4, 6), normal(10, 4, seed=1), normal(10, 4, seed=2)
    same = Gather(tuple(range(10)))
    assert np.array_equal(
        grow(copied(tile(4)), shared(tile(6)), weight), np.tile(weight, (2, 2)) / 2
    )
    assert np.array_equal(grow(same, copied(tile(4)), embedding), np.tile(embedding, (1, 2)))
    assert np.array_equal(grow(same, shared(tile(4)), head), np.tile(head, (1, 2)) / 2)


def test_two_terms_make_a_block_diagonal() -> None:
    """Staged training's width operator (arXiv 2203.06211): W on the diagonal, zero elsewhere."""
    weight = normal(3, 2)
    first = lambda n: Gather((*range(n), *[FRESH] * n))  # noqa: E731
    second = lambda n: Gather((*[FRESH] * n, *range(n)))  # noqa: E731
    terms = (Term("w", (first(3), first(2))), Term("w", (second(3), second(2))))
    zero = np.zeros((3, 2))
    grown = whole(TensorMap(tensor((6, 4)), terms, ZERO), {"w": weight})
    assert np.array_equal(grown, np.block([[weight, zero], [zero, weight]]))


def test_learned_growth_is_dense_on_both_axes() -> None:
    """LiGO (arXiv 2303.00980): W' = B W A^T."""
    weight, rows, columns = normal(3, 2), normal(5, 3, seed=1), normal(4, 2, seed=2)
    terms = (Term("w", (Dense(torch.from_numpy(rows)), Dense(torch.from_numpy(columns)))),)
    grown = whole(TensorMap(tensor((5, 4)), terms, ZERO), {"w": weight})
    assert grown == pytest.approx(rows @ weight @ columns.T, rel=1e-5, abs=1e-6)

"""From two shapes and operators to a map for every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod

import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.growth.claims import check_draws, check_function, check_new_units
from megatron_grow.growth.composition import compose
from megatron_grow.growth.folding import Folding
from megatron_grow.growth.grown import grown_axes, summary, working_operators
from megatron_grow.growth.optimizer_state import Policy, moment_map
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.state.axes import LAYER
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.maps import TensorMap, all_fresh, identity
from megatron_grow.state.questions import Answers, Question
from megatron_grow.state.tensors import LogicalTensor

TensorsOf = Callable[[ModelConfig, int | None], dict[str, LogicalTensor]]
"""From a shape and the depth that its run ends with to all tensors, with the rules of their init:
those of the architecture, or of a parametrization."""


@dataclass(frozen=True)
class Plan:
    """How one training state is made from another."""

    tensors: dict[str, LogicalTensor]
    """Of the target, by key."""
    weights: dict[str, TensorMap]
    gradients: dict[str, TensorMap]
    """How gradients follow from the source's; moments are carried as these."""
    optimizer_state: Policy
    seed: int
    """Decides fresh values."""
    summary: str
    """What grows, for people."""
    caveats: tuple[str, ...] = ()
    """Why the function changes, if it does."""
    new_units: NewUnits = field(default_factory=dict)
    """By axis, new units whose masking at first would preserve the function."""
    caveats_masked: tuple[str, ...] = ()
    """Those of the caveats that hold while these units are masked."""
    optimizer: Optimizer | None = None
    """Whose state is carried, for the powers of the gradient that it has; None where these make no
    difference: where all state stays as it is, or none does."""
    questions: tuple[Question, ...] = ()
    """What the operators ask about the source's weights."""
    made: Callable[[Answers], Plan] | None = field(default=None, compare=False, repr=False)
    """Makes it with other answers; None: it asks nothing, or knows."""
    _moments: dict[tuple[str, str], TensorMap] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """Kept: one is asked for as often as a tensor has parts, and takes up to 0.3 s to make."""

    def map(self, key: str, kind: str) -> TensorMap:
        """The map of one kind of state of the tensor ``key``."""
        if kind == MAIN_PARAM:
            return self.weights[key]
        if (key, kind) not in self._moments:
            states = self.optimizer.rule(self.tensors[key]).states if self.optimizer else {kind: 1}
            self._moments[key, kind] = moment_map(
                self.gradients[key], self.optimizer_state, states[kind]
            )
        return self._moments[key, kind]

    @cached_property
    def knows_old(self) -> bool:
        """Whether :meth:`.TensorMap.old` is right whatever the source's weights are.

        Before a growth they are not known, and gone where a run is resumed after it.
        """
        if self.made is None:
            return True
        return all(
            torch.equal(found.old(axis), self.weights[key].old(axis))
            for order in (1.0, -1.0)
            for key, found in self.made(_ordered(self.questions, order)).weights.items()
            for axis in range(len(self.tensors[key].axes))
        )

    def answered(self, ask: Callable[[tuple[Question, ...]], Answers]) -> Plan:
        """The same, whose maps know what ``ask`` finds out about the source's weights.

        Before that they are those of a source of ones: what they draw on and what is fresh is
        right, which entries they choose is not.
        """
        if self.made is None:
            return self
        return self.made(ask(self.questions))


def initialisation(
    model: ModelConfig, target_depth: int, seed: int, tensors_of: TensorsOf = logical_tensors
) -> Plan:
    """The plan that makes a state from nothing: a run's first."""
    tensors = tensors_of(model, target_depth)
    fresh = {key: all_fresh(tensor) for key, tensor in tensors.items()}
    return Plan(tensors, fresh, fresh, "reset", seed, "fresh weights")


def resharding(model: ModelConfig) -> Plan:
    """The plan that keeps a state as it is, for another layout."""
    tensors = logical_tensors(model)
    same = {key: identity(tensor) for key, tensor in tensors.items()}
    return Plan(tensors, same, same, "carry", 0, "the same model")


def growth(
    source: ModelConfig,
    target: ModelConfig,
    grow: GrowSection | None,
    *,
    target_depth: int,
    seed: int,
    optimizer: Optimizer | None = None,
    tensors_of: TensorsOf = logical_tensors,
    where: str = "grow",
) -> Plan:
    """The plan that grows ``source`` into ``target``.

    Args:
        source: the shape before.
        target: the shape after.
        grow: the operators, and what happens to optimizer state; None keeps everything.
        target_depth: the depth that the whole run ends with, for the init of fresh layers.
        seed: decides fresh values.
        optimizer: whose state is carried; that of a run file that names none, if absent.
        tensors_of: how fresh entries are made.
        where: begins the message of an error, for example ``stages[1].grow``.

    Raises:
        UserError: an unknown operator or option, or an impossible growth.
    """
    grow = grow or GrowSection()
    options = _changed_options(source, target, where)
    tensors, before = tensors_of(target, target_depth), logical_tensors(source)
    grown = grown_axes(before, tensors)
    layers = source.unique_layer_of, target.unique_layer_of
    if layers[0] != layers[1]:
        grown[LAYER] = (source.num_layers, target.num_layers)
    post_norm = any(tensor.stream_norm for tensor in tensors.values())
    operators = working_operators(grow, grown, source, target, where, post_norm=post_norm)
    folding = Folding(source, target)
    asked = {key: tuple(o.questions(before, source, target)) for key, o in operators.items()}

    new: dict[str, NewUnits] = {}

    def drawn(o: Operator, how: str, tensor: LogicalTensor) -> list[Draw]:
        draws: list[Draw] = getattr(o, how)(tensor, source, target)
        if (origin := tensor.drawn_from(before)) in before:
            check_draws(o, draws, (before[origin], tensor), (source, target), where)
        return draws

    def made(answers: Answers) -> Plan:
        knowing = {
            key: replace(o, answers={each: answers[each] for each in asked[key]})
            for key, o in operators.items()
        }
        weights, gradients = (
            {
                key: folded(
                    compose(
                        tensor,
                        before.get(tensor.drawn_from(before)),
                        [drawn(o, how, tensor) for o in knowing.values()],
                        layers,
                        summed=how == "gradients",
                        where=where,
                    )
                )
                for key, tensor in tensors.items()
            }
            for how, folded in (("weights", folding.weights), ("gradients", folding.gradients))
        )
        for key, o in knowing.items():
            units = o.new_units(source, target)
            check_new_units(o, units, new.setdefault(key, units), where)
            check_function(o, source, target, where)
        return Plan(
            tensors,
            weights,
            gradients,
            grow.optimizer_state or "carry",
            seed,
            "; ".join(
                (
                    summary(knowing, grown, source, target),
                    *_in_words(source, target),
                    *folding.in_words(),
                    *options,
                )
            ),
            (*_caveats(knowing, source, target, masked=False), *options, *folding.caveats()),
            _new_units(knowing, source, target),
            (*_caveats(knowing, source, target, masked=True), *options, *folding.caveats()),
            optimizer or optimizer_of(OptimizerSection()),
        )

    questions = tuple(dict.fromkeys(each for some in asked.values() for each in some))
    unknown = made({each: torch.ones(each.shape, dtype=torch.float64) for each in questions})
    if not questions:
        return unknown
    # What an operator gets wrong about weights that differ shows now, not at the growth.
    made(_unlike(questions))
    return replace(unknown, questions=questions, made=made)


def _unlike(questions: Iterable[Question]) -> Answers:
    """Answers as different as those about real weights."""
    generator = torch.Generator().manual_seed(0)
    return {
        each: 0.5 + torch.rand(each.shape, dtype=torch.float64, generator=generator)
        for each in questions
    }


def _ordered(questions: tuple[Question, ...], order: float) -> Answers:
    """Answers of which no two entries are alike: rising, or with ``order`` -1 falling."""
    return {
        each: torch.linspace(2 - order, 2 + order, prod(each.shape)).double().view(each.shape)
        for each in questions
    }


def _changed_options(source: ModelConfig, target: ModelConfig, where: str) -> tuple[str, ...]:
    """What the architecture's options change of the function, in words."""
    before, after = architecture_of(source), architecture_of(target)
    for option in fields(after):
        was, is_ = getattr(before, option.name), getattr(after, option.name)
        if was != is_ and option.name not in after.changing:
            raise UserError(
                f"{where}: model.options.{option.name}={is_} differs from the {was} before; no "
                "growth changes that"
            )
    return tuple(f"{name}: {words}" for name, words in after.changes_since(before, where).items())


def _in_words(source: ModelConfig, target: ModelConfig) -> Iterator[str]:
    """What else changes in kind."""
    shared = target.num_attention_heads // target.query_groups
    if source.num_layers and source.query_groups == source.num_attention_heads and shared > 1:
        yield (
            f"multi-head attention becomes grouped: {shared} query heads share each key and value "
            f"(num_query_groups={target.query_groups})"
        )
    if source.share_embeddings_and_output_weights > target.share_embeddings_and_output_weights:
        yield "the head, no longer tied, begins as the embedding"


def _new_units(
    operators: dict[str, Operator], source: ModelConfig, target: ModelConfig
) -> NewUnits:
    return {
        axis: flags
        for chosen in operators.values()
        if chosen.can_fade_in
        for axis, flags in chosen.new_units(source, target).items()
        if any(flags)
    }


_ROTARY = (
    "rotary_base",
    "rotary_seq_len_interpolation_factor",
    "use_rope_scaling",
    "rope_scaling_factor",
)


def _caveats(
    operators: dict[str, Operator], source: ModelConfig, target: ModelConfig, masked: bool
) -> tuple[str, ...]:
    found = [
        f"{key}: {reason}"
        for key, chosen in operators.items()
        if not (masked and chosen.can_fade_in) and (reason := chosen.caveat(source, target))
    ]
    for name in _ROTARY:
        was, is_ = getattr(source, name), getattr(target, name)
        if was != is_:
            found.append(f"{name}: {was} -> {is_} moves positions")
    return tuple(found)

"""Commands one after another on the same ranks, and what they read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator


def run_all(commands: list[list[str]]) -> list[tuple[int, str, dict[str, list]]]:
    """On a rank: one command after another; exit codes, errors, and the micro-batches read.

    Each micro-batch, of ``train`` or ``valid``, is a pair: this rank's place among the
    data-parallel ones, and tokens.
    """
    from megatron.core import parallel_state

    from megatron_grow.live.stage import LiveStage
    from megatron_grow.parallel import process_groups
    from megatron_grow.train.entry import main

    seen: dict[str, list] = {}

    def spy(kind: str, batches: Iterator | None) -> Iterator | None:
        def watched(batches: Iterator) -> Iterator:
            for batch in batches:
                place = parallel_state.get_data_parallel_rank()
                seen[kind].append((place, batch["tokens"].flatten().tolist()))
                yield batch

        return None if batches is None else watched(batches)

    train, evaluate, stop = LiveStage.forward_backward, LiveStage.evaluate, process_groups.stop
    LiveStage.forward_backward = lambda self, step, x: train(self, step, spy("train", x))  # type: ignore[method-assign]
    LiveStage.evaluate = lambda self, x, *more: evaluate(self, spy("valid", x), *more)  # type: ignore[method-assign]
    process_groups.stop = process_groups.tear_down  # the next command is another job of these ranks
    results = []
    for argv in commands:
        seen, errors = {"train": [], "valid": []}, io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = main(argv)
        results.append((code, errors.getvalue(), seen))
    process_groups.stop = stop
    return results


def read_by(ranks: list[dict[str, list]], kind: str) -> list[int]:
    """Tokens in the order of the stream, from the micro-batches of all ranks."""
    found: dict[tuple[int, int], list[int]] = {}
    for seen in ranks:
        for number, (place, tokens) in enumerate(seen[kind]):
            # Ranks in one place of the data-parallel group read the same.
            assert found.setdefault((number, place), tokens) == tokens
    return [token for _, tokens in sorted(found.items()) for token in tokens]

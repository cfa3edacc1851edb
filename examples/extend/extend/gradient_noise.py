"""A method: ``methods: [{name: "extend.gradient_noise:GradientNoise", eta: 0.01}]``."""

from dataclasses import dataclass

from megatron_grow.inputs.ranges import NotNegative, check_fields
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Normal


@dataclass
class GradientNoise(TrainingMethod):
    """Add noise to the gradients, less and less of it (Neelakantan et al. 2015, arXiv 1511.06807).

    It is a function of seed and step, the same on every layout.
    """

    eta: NotNegative = 0.01
    """Variance in step t: ``eta / (1 + t) ** 0.55``."""

    def __post_init__(self) -> None:
        check_fields(self)

    def after_backward(self, ctx: Context) -> None:
        """As :meth:`.TrainingMethod.after_backward`."""
        noise = Normal((self.eta / (1 + ctx.step) ** 0.55) ** 0.5)
        seed = 1_000_003 * ctx.step + ctx.run.run.seed
        for shard in ctx.live.shards():
            if shard.main.grad is not None:
                for box, gradient in shard.views(shard.main.grad):
                    gradient.add_(fresh(ctx.live.tensors[shard.key], box, noise, seed))

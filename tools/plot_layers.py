"""Draw the sizes of a run's layers over its steps: weights, gains, updates, gradients, activations.

The run must have been trained with train.layers_interval (docs/layers.md):

    python tools/plot_layers.py runs/progressive --output layers.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.layer_figures import layers_figure
from megatron_grow.report.layers import load_layers


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of the picture (default RUN/layers.png)"
    )
    args = parser.parse_args()
    output = args.output or args.run / "layers.png"
    try:
        picture = layers_figure(load_layers(args.run), str(args.run))
        write_whole(output, [picture])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --output {output} cannot be written: {error}", file=sys.stderr)
        sys.exit(2)
    print(output)


if __name__ == "__main__":
    main()

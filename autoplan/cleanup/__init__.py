"""Clean-up passes on a captured graph: each removes one thing that says nothing about the model.

Every pass edits the graph in place during capture only; afterwards the graph is read-only.
"""

from autoplan.cleanup.bags import write_bags_as_rows
from autoplan.cleanup.constants import fold_constants, recompute
from autoplan.cleanup.functionalize import functionalize
from autoplan.cleanup.pins import PinnedValue, pins_in_use, take_pins
from autoplan.cleanup.places import annotate_paths
from autoplan.cleanup.recurrent import separate_recurrent_dropout
from autoplan.cleanup.regions import inline_regions
from autoplan.cleanup.rewrites import (
    split_fused_projections,
    state_epsilon,
    use_causal_flag,
    use_grouped_heads,
)
from autoplan.cleanup.simplify import (
    drop_asserts,
    drop_no_ops,
    drop_unused,
    forget_devices,
    number_random_ops,
    refuse_dynamic_shapes,
    refuse_foreign_calls,
    refuse_unkeyed_random,
)
from autoplan.cleanup.statistics import write_instance_statistics
from autoplan.cleanup.ties import share_tied_parameters
from autoplan.cleanup.types import compute_in_double, mark_gradients, refuse_mixed_products

__all__ = [
    "PinnedValue",
    "annotate_paths",
    "compute_in_double",
    "drop_asserts",
    "drop_no_ops",
    "drop_unused",
    "fold_constants",
    "forget_devices",
    "functionalize",
    "inline_regions",
    "mark_gradients",
    "number_random_ops",
    "pins_in_use",
    "recompute",
    "refuse_dynamic_shapes",
    "refuse_foreign_calls",
    "refuse_mixed_products",
    "refuse_unkeyed_random",
    "separate_recurrent_dropout",
    "share_tied_parameters",
    "split_fused_projections",
    "state_epsilon",
    "take_pins",
    "use_causal_flag",
    "use_grouped_heads",
    "write_bags_as_rows",
    "write_instance_statistics",
]

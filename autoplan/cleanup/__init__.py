"""Clean-up passes on a captured graph: each removes one thing that says nothing about the model.

Every pass edits the graph in place during capture only; afterwards the graph is read-only.
"""

from autoplan.cleanup.constants import fold_constants
from autoplan.cleanup.places import annotate_paths, user_frame
from autoplan.cleanup.regions import inline_regions
from autoplan.cleanup.rewrites import split_fused_projections, use_causal_flag
from autoplan.cleanup.simplify import (
    drop_asserts,
    drop_no_ops,
    drop_unused,
    forget_devices,
    refuse_dynamic_shapes,
    refuse_unkeyed_random,
)
from autoplan.cleanup.state import functionalize, share_tied_parameters
from autoplan.cleanup.types import compute_in_double, mark_gradients

__all__ = [
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
    "refuse_dynamic_shapes",
    "refuse_unkeyed_random",
    "share_tied_parameters",
    "split_fused_projections",
    "use_causal_flag",
    "user_frame",
]

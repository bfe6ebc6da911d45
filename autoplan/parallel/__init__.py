"""The `parallel` argument: what the user fixes of the mesh, and what each axis is for.

data      4, or dict(size=4, mode="data"|"ddp"|"fsdp"|"hsdp", zero=1|2|3, shard=2)
expert    4, or dict(size=4)
sequence  dict(size=4, mode="ulysses"|"ring"|"free")
tensor    dict(size=4, mode="1d"|"2d"|"2.5d"|"3d"|"free", depth=2, sequence_parallel=True)
pipeline  4, or dict(size=4, ...), read in `autoplan.pipeline_choice`
mesh      dict(outer=2, inner=dict(size=4, preset="fsdp")): axes, free or bound to a preset; beside
          it stands no other key but pipeline
"""

from autoplan.parallel.checks import check_key, check_name, positive
from autoplan.parallel.choice import MeshChoice
from autoplan.parallel.meshes import KEYS, PIPELINE_KEYS, mesh_choices, pipeline_size

__all__ = [
    "KEYS",
    "PIPELINE_KEYS",
    "MeshChoice",
    "check_key",
    "check_name",
    "mesh_choices",
    "pipeline_size",
    "positive",
]

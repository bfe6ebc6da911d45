"""Cost models: seconds of ops and collectives, bytes alive. `Roofline` is the default.

A new cost model is one class with the three methods of `CostModel`; a new device is one TOML file
in `profiles/`, or the path of the user's own.
"""

from autoplan.cost_models.base import AxisLink, CostModel, ParameterBytes, Work, parameter_bytes
from autoplan.cost_models.cluster import Cluster
from autoplan.cost_models.cluster_file import describe_cluster, load_cluster
from autoplan.cost_models.collectives import collective_bytes, collective_time_s
from autoplan.cost_models.levels import Level, Slower
from autoplan.cost_models.profile import Profile, load_profile, profile_names
from autoplan.cost_models.roofline import Roofline

__all__ = [
    "AxisLink",
    "Cluster",
    "CostModel",
    "Level",
    "ParameterBytes",
    "Profile",
    "Roofline",
    "Slower",
    "Work",
    "collective_bytes",
    "collective_time_s",
    "describe_cluster",
    "load_cluster",
    "load_profile",
    "parameter_bytes",
    "profile_names",
]

"""Config: the options of a plan as a file, with overrides, and as a plan resolved them.

options = autoplan.read_config("run.toml", ["parallel.tensor.size=4", "memory=40GB"])
plan = autoplan.plan(model, args, **options)
"""

from autoplan.config.files import read_config
from autoplan.config.resolved import cluster_of, resolved_config
from autoplan.config.together import Config, with_config

__all__ = ["Config", "cluster_of", "read_config", "resolved_config", "with_config"]

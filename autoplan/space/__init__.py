"""The space of all ways to use the devices: pipelines, meshes, microbatches, schedules."""

"""Execution of emitted programs: knows programs and layouts, not the planner."""

"""Timelines of a step, predicted and measured, as traces that Perfetto and Chrome show."""

"""Errors of autoplan: each names what the user wrote, what was expected, and the fix."""

from __future__ import annotations


class AutoplanError(Exception):
    """Base of every error that autoplan raises on purpose."""


class LayoutError(AutoplanError):
    """A layout text or object that cannot be read, or that does not fit its tensor or mesh."""


class CaptureError(AutoplanError):
    """The model could not be captured as a graph."""


class RuleError(AutoplanError):
    """An index-notation rule that is malformed or does not fit its op."""


class ConfigError(AutoplanError):
    """An impossible mesh, an unknown key, or an argument out of its range."""


class HintError(AutoplanError):
    """A hint that matches nothing, or that no strategy can satisfy."""


class HintTextError(HintError):
    """A hint that cannot be read, or that names nothing in the model."""


class InfeasibleError(AutoplanError):
    """No plan satisfies the hints and the memory limit together."""


class InputError(AutoplanError):
    """A call of a parallel module with arguments that its plan cannot run."""


class VerificationError(AutoplanError):
    """The emitted program does not compute what the original model does; see `check`."""

    def __init__(self, message: str, check: object) -> None:
        super().__init__(message)
        self.check = check


class PlanFileError(AutoplanError):
    """A plan file that is damaged, foreign, or of another model."""


class PlanningStoppedError(AutoplanError):
    """Rank 0, which plans for all, stopped before there was a plan."""

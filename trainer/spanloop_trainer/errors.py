"""The trainer's errors: each class is one boundary (configuration, transform, training, gate)."""

from __future__ import annotations

from spanloop_store.errors import SpanloopError


class ConfigError(SpanloopError):
    """`spanloop.toml`, or a file that it names, is missing or says something that we do not understand."""


class TransformError(SpanloopError):
    """Spans could not be turned into a dataset; nothing was written."""


class JudgeError(SpanloopError):
    """The judge model cannot be asked; no dataset was written, and what it judged so far is kept."""


class DatasetError(SpanloopError):
    """A dataset folder that is missing, unfinished or changed since it was built."""


class ExportError(SpanloopError):
    """A dataset cannot be written in the form that was asked for; no file was written."""


class ModelError(SpanloopError):
    """A model folder, hub id or registry reference from which no model and tokenizer can be loaded."""


class TrainError(SpanloopError):
    """Training cannot start, or cannot learn anything from this dataset; no model was written."""


class ServeError(SpanloopError):
    """The policy server cannot start, or cannot serve a version or a prompt."""


class EvaluationError(SpanloopError):
    """Two versions cannot be compared on a dataset; no evaluation was written."""


class PromotionRejected(SpanloopError):
    """The gate refused a version; the refusal is recorded and the alias stays where it was."""


class ReportError(SpanloopError):
    """A run folder has no result that a report could be made from."""

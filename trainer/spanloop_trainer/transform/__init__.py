"""Spans to transitions: reads `otel_traces` and `rewards`, writes a dataset."""

from spanloop_trainer.transform.build import build
from spanloop_trainer.transform.datasets.dataset import Manifest, load_dataset
from spanloop_trainer.transform.pipeline import transform

__all__ = ["Manifest", "build", "load_dataset", "transform"]

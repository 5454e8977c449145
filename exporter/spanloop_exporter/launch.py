"""Makes `opentelemetry-instrument` choose Spanloop's distro: the launcher imports this before it starts the agent.

Of several installed distros OpenTelemetry takes the first that the file system lists, and its own default distro asks
for an exporter (gRPC) that is not installed here, which would leave the agent without any spans. Nothing in this module
may be called `OTEL_…`: the launcher turns such names into command line options, and two of one name stop it.
"""

from __future__ import annotations

import os

from opentelemetry.util._importlib_metadata import entry_points

# OpenTelemetry's default distro, which sets what ours sets, and ours.
_REPLACEABLE = {"distro", "spanloop"}


def choose_distro() -> None:
    """Name our distro, unless the user names one or has installed one of a vendor."""
    installed = {entry_point.name for entry_point in entry_points(group="opentelemetry_distro")}
    if not os.environ.get("OTEL_PYTHON_DISTRO") and installed <= _REPLACEABLE:
        os.environ["OTEL_PYTHON_DISTRO"] = "spanloop"


choose_distro()

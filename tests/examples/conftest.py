"""The example's modules, importable as its own programs import them, by their folder."""

from __future__ import annotations

import sys
from pathlib import Path

CALCULATOR = Path(__file__).parents[2] / "examples" / "calculator"
sys.path.insert(0, str(CALCULATOR))

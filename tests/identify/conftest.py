"""The random model of the transformers tests: identification needs no data either."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "transformers"))

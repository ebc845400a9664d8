"""The random model of the transformers tests: models' configurations and residuals need no data."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "transformers"))

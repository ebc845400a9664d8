"""Python imports this in every process of an engine test; it does what SAIF_TEST_SITE names.

A test can so bend a vLLM, or break a plugin, from outside: nothing of either is edited.
"""

import importlib
import os

for name in os.environ.get("SAIF_TEST_SITE", "").split():
    importlib.import_module(name)

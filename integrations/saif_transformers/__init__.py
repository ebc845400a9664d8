"""Steering of Hugging Face models: the reference, with the vLLM plugin's op and tables."""

from saif_transformers.context import steer
from saif_transformers.runtime import TransformersRuntime

__all__ = ["TransformersRuntime", "steer"]

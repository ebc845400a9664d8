"""Steering of Hugging Face models: the reference, with the vLLM plugin's op and tables."""

from saif_transformers.runtime import TransformersRuntime
from saif_transformers.steering import steer

__all__ = ["TransformersRuntime", "steer"]

"""Quality of replies beside obedience: repetition, fluency, topic, and what steering costs."""

from saif_fast.quality.yardstick import Answer, NoYardstick, ReplyQuality, Thresholds, Yardstick

__all__ = ["Answer", "NoYardstick", "ReplyQuality", "Thresholds", "Yardstick"]

"""The build: its gate, its tokenizer, and its card, without training a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from saif_fast import embedded
from saif_fast.tasks.embedded import embedded_task_names

pytest.importorskip("transformers")

from tools.tiny_model import build as building
from tools.tiny_model.tokenizer import build_tokenizer


@pytest.mark.parametrize("passing", [0, building.GATE_TASKS - 1])
def test_nothing_is_written_below_the_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passing: int
) -> None:
    rounds = []
    accuracies = {
        name: 0.95 if i < passing else 0.94 for i, name in enumerate(embedded_task_names())
    }
    monkeypatch.setattr(building, "train", lambda *arguments: rounds.append(arguments) or 0.0)
    monkeypatch.setattr(building, "prompted_accuracy", lambda *arguments: accuracies)
    with pytest.raises(RuntimeError, match=r"expected 0\.95 in 5 tasks .* nothing was written"):
        building.build(tmp_path)
    assert len(rounds) == building.MAX_ROUNDS
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_rebuilt_to_the_byte(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer(["a", "a b"], padding=True)  # must leave no trace
    building.save_tokenizer(tokenizer, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (embedded.model_path() / path.name).read_bytes(), path.name


def test_the_card_discloses_the_base_rate_and_reports_every_task() -> None:
    card = (embedded.DATA / "MODEL_CARD.md").read_text()
    assert "Base rate q = 0.5" in card
    assert all(f"| {name} |" in card for name in embedded_task_names())

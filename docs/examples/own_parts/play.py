"""A task without images: the next character of a play, learned by a small LSTM; each speaker's lines are a client's.

One file holds three parts: the data set, the net and the loss.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from hpclbfl.config.sections import DataConfig, LossConfig, ModelConfig
from hpclbfl.config.sections.base import PathText, PositiveInt
from hpclbfl.data.examples import Examples
from hpclbfl.models import DataSpec

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz'!,-.:;?"
"""The first one begins and ends a line."""
PADDING = -1
"""A target that does not count."""


class Play:
    """Lines as numbers of characters, int64 [N, length]; targets are the same, one character later."""

    class Config(DataConfig):
        """`name` and `limit` are there already."""

        path: PathText = "play.txt"
        """Relative to the job file, as every `PathText`."""
        length: PositiveInt = 64
        """Of the longest line; what is beyond is cut off."""

    def __init__(self, config: Config) -> None:
        lines = [line.partition(": ") for line in Path(config.path).read_text(encoding="utf-8").splitlines()]
        speakers = sorted({speaker for speaker, _, _ in lines})
        texts = np.full((len(lines), config.length + 1), PADDING)
        for row, (_, _, words) in enumerate(lines):
            numbers = [ALPHABET.index(character) for character in f"\n{words.lower()}\n"][: config.length + 1]
            texts[row, : len(numbers)] = numbers
        groups = np.array([speakers.index(speaker) for speaker, _, _ in lines])
        is_test = np.arange(len(lines)) % 5 == 4
        self.train, self.test = (
            # Inputs have no padding: what stands there is never asked for.
            Examples(texts[part, :-1].clip(min=0), texts[part, 1:], groups=groups[part])
            for part in (~is_test, is_test)
        )


class CharLstm(nn.Module):
    """Scores of the next character, [b, characters, length]."""

    class Config(ModelConfig):
        """The keys that a job may give beside `name`."""

        width: PositiveInt = 32
        """Numbers that the LSTM remembers."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 16)
        self.lstm = nn.LSTM(16, config.width, batch_first=True)
        self.head = nn.Linear(config.width, len(ALPHABET))

    def forward(self, characters: Tensor) -> Tensor:
        """Characters [b, length] to scores."""
        states, _ = self.lstm(self.embedding(characters))
        scores: Tensor = self.head(states).transpose(1, 2)
        return scores


class PerCharacter:
    """Cross-entropy of every character, nats; a long line weighs more than a short one."""

    def __init__(self, config: LossConfig, data: DataSpec) -> None:
        """It needs neither."""

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The sum over all characters of the batch."""
        return nn.functional.cross_entropy(scores, targets, ignore_index=PADDING, reduction="sum")

    def count(self, targets: Tensor) -> int:
        """The number of characters: what the sum is divided by, over all clients."""
        return int((targets != PADDING).sum())

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums that an evaluation divides by the count."""
        return {"accuracy": (scores.argmax(dim=1) == targets).sum()}

    def summary(self, loss: float, metrics: dict[str, float]) -> dict[str, float]:
        """What is reported: the metrics, and what is no mean of characters."""
        return {**metrics, "perplexity": math.exp(min(loss, 100.0))}

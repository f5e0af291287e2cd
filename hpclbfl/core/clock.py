"""Timing on a device: wall-clock marks on a CPU, events on a GPU, without synchronising the host."""

from __future__ import annotations

import time

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Takes marks; the time between two is read later, when the device has passed them.

    On a GPU a mark is an event in the current stream, so a span covers the work queued in it and the device's idle time
    (say, for images that the host was preparing), and nothing is synchronised.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_lazy = device.type == "cuda"
        """Marks can be read only after the device has passed them."""

    def mark(self) -> Mark:
        """The present moment on the device."""
        if not self.is_lazy:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds(begin: Mark, end: Mark) -> float:
    """Between two marks of one clock, seconds; on a GPU waits until the device has passed both."""
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    raise TypeError("marks of two different clocks")

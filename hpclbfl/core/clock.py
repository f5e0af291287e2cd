"""Timing on a device: wall-clock times on a CPU, events on a GPU, without synchronising the host."""

from __future__ import annotations

import time

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Takes marks; the time between two marks is read later, when the device has passed them.

    On a GPU a mark is an event in the current stream. The time between two events covers the work queued between them
    and the device's idle time (for example while the host prepares images).
    """

    def __init__(self, device: torch.device) -> None:
        self.is_lazy = device.type == "cuda"
        """Whether marks can be read only after the device has passed them."""

    def mark(self) -> Mark:
        """The present time on the device."""
        if not self.is_lazy:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds(begin: Mark, end: Mark) -> float:
    """Seconds between two marks of one clock; on a GPU, waits until the device has passed both."""
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    raise TypeError("marks of two different clocks")

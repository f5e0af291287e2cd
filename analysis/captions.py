"""Titles and captions of the figures, as the page shows them."""

from __future__ import annotations

from hpclbfl.analysis.plot_data import CHANGE_RANGE
from hpclbfl.analysis.stats import LEVEL, MIN_SEEDS

CAPTIONS: dict[str, tuple[str, str]] = {
    "learning_curves": (
        "Test accuracy",
        "Top-1 on the test split, mean over n seeds of complete runs. Bands: "
        f"{100 * LEVEL:.0f} % Student's t interval of the mean, from {MIN_SEEDS} seeds up. Equal steps give a larger "
        "batch more samples; compare along samples and seconds, too.",
    ),
    "final_accuracy": (
        "Final accuracy by arm",
        "Top-1 on the test split at the end of the run. Dots: mean over n seeds, with its "
        f"{100 * LEVEL:.0f} % Student's t interval from {MIN_SEEDS} seeds up. Open circles: single runs.",
    ),
    "sharpness": (
        "Sharpness and accuracy",
        "One mark per run. Top eigenvalue (the largest in magnitude) of the Hessian of the mean training loss, at the "
        "last state that 'hpclbfl sharpness' looked at, and top-1 on the test split at that step. Bars: the "
        "eigenvalue's residual, where it is wide enough to be seen; a pale mark's has not settled. Small eigenvalues "
        "are flat minima; where the top one is negative, the net is at no minimum.",
    ),
    "gradient_norm": (
        "Gradient norm and its change",
        "First: norm of the gradient that all clients share, before it is scaled (where clients train alone: mean over "
        "clients of their own), mean over a stretch of steps. Second: its sum over all steps so far. Third: relative "
        "change of its square from step to step, |ΔG²| / G², median over a stretch. Means over n seeds. Triangles at "
        "the end of an axis: a norm below 10⁻⁷, which is zero up to rounding; a change outside of "
        f"{CHANGE_RANGE[0]:g} to {CHANGE_RANGE[1]:g}.",
    ),
    "scale_factor": (
        "Scale factor",
        "How many steps were scaled by which factor: kernel density on a logarithmic axis, mean over n seeds. Arms "
        "whose factor is 1 in every step of every seed are left out.",
    ),
    "time_shares": (
        "Where a step's time goes",
        "Shares of the time of all clients' steps: forward and backward pass and optimizer; waiting for and copying "
        "the batch; moving and summing gradients or parameters; waiting for slower ranks. Means over n seeds.",
    ),
    "batches_and_waits": (
        "Batch sizes and stragglers",
        "One run per arm. First: samples that each client processes per step. Second: what a step takes on each "
        "client, mean; what a rank spends once per step is shared evenly among its clients.",
    ),
}
"""By figure: title and caption. The three learning curves are one figure with a switch."""

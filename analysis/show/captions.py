"""Titles and captions of the figures, as the page shows them."""

from __future__ import annotations

from hpclbfl.analysis.measure.plot_data import CHANGE_RANGE
from hpclbfl.analysis.measure.stats import LEVEL, MIN_SEEDS

CAPTIONS: dict[str, tuple[str, str]] = {
    "learning_curves": (
        "Test accuracy",
        "Top-1 on the test split, mean over n seeds of complete runs. Bands: "
        f"{100 * LEVEL:.0f} % Student's t interval of the mean, from {MIN_SEEDS} seeds up. At equal steps a "
        "larger batch has seen more samples; compare along samples and seconds, too.",
    ),
    "final_accuracy": (
        "Final accuracy by arm",
        "Top-1 on the test split at the end of the run. Dots: mean over n seeds, with its "
        f"{100 * LEVEL:.0f} % Student's t interval from {MIN_SEEDS} seeds up. Open circles: single runs.",
    ),
    "sharpness": (
        "Sharpness and accuracy",
        "One mark per run. Top eigenvalue (the largest in magnitude) of the Hessian of the mean training loss, at the "
        "last state that 'hpclbfl sharpness' measured, and top-1 on the test split at that step. Bars: residual of the "
        "eigenvalue, if wide enough to be seen. Pale marks: the eigenvalue has not converged. Small eigenvalues mean "
        "flat minima; if the top one is negative, the model is not at a minimum.",
    ),
    "gradient_norm": (
        "Gradient norm and its change",
        "First: norm of the reduced gradient before it is scaled (in local training: mean over the clients' own "
        "gradients), mean over a stretch of steps. Second: its sum over all steps so far. Third: relative change of "
        "its square from step to step, |ΔG²| / G², median over a stretch. Means over n seeds. Triangles at the end of "
        "an axis: a norm below 10⁻⁷, which is zero up to rounding; a change outside of "
        f"{CHANGE_RANGE[0]:g} to {CHANGE_RANGE[1]:g}.",
    ),
    "critical_phases": (
        "When detectors of critical phases fire",
        "One run per arm. First: norm of the reduced gradient (in local training: mean over the clients' own "
        "gradients). Second: steps in which each detector that 'gradients.watch' lists, or that the job decides by, "
        "fires; pale bars stand for several steps, or clients, of which some do. Grey: its change is not known.",
    ),
    "scale_factor": (
        "Scale factor",
        "Distribution of the scale factor over the steps: kernel density on a logarithmic axis, mean over n seeds. "
        "Arms whose factor is 1 in every step of every seed are left out.",
    ),
    "teacher": (
        "Teacher",
        "First: how much the teacher A(.) changes the gradient, |A(G) - G|² relative to |G|², mean over a stretch of "
        "steps and over clients. Second: at its training steps, the share of fresh gradients (of their squared norm) "
        "that it predicts before it learns them. Means over n seeds.",
    ),
    "time_shares": (
        "Where a step's time goes",
        "Shares of the time of all clients' steps: forward and backward pass and optimizer; waiting for and copying "
        "the batch; moving and summing gradients or parameters; waiting for slower ranks. Means over n seeds.",
    ),
    "batches_and_waits": (
        "Batch sizes and stragglers",
        "One run per arm. First: samples that each client processes per step. Second: mean time of a step on each "
        "client; what a rank spends once per step is divided evenly among its clients.",
    ),
}
"""Title and caption by figure. The three learning curves are one figure with a switch."""

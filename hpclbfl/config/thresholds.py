"""Default thresholds of the relative gradient change, by the metric that tells it (see `hpclbfl.gradients.change`).

Measured with ten clients, resnet8 and b_c = 16, on the digits (72 steps, which nearly learn them: clients' gradients
become small and erratic) and on CIFAR-10 (2000 images of 8 px, 200 steps). Shares are of the steps whose change is
known.
"""

from __future__ import annotations

SELSYNC = {"selsync": 0.05, "squared_norm": 1.0}
"""Of a client's own gradient; one client that reaches it makes all average.

selsync: 0.05 averages in 6 % of the steps on CIFAR-10, i.i.d. (9 % with 4000 images of 32 px), in 23 % with Dirichlet
shards of alpha 0.3, and in 96 % on the digits. No value suits both: 0.1 averages in 30 % on the digits, 0.07 and more
never on CIFAR-10, i.i.d. squared_norm: 1.0 averages in 28 % on CIFAR-10 and in 85 % on the digits.
"""
SCALER = {"squared_norm": 0.5, "selsync": 0.02}
"""Of the gradient of a shared model, from which it is stepped up.

squared_norm: the paper's. selsync: 0.02 is reached in 77 % of the steps on the digits, in 2 % on CIFAR-10, i.i.d., and
in 34 % there with one label per client.
"""

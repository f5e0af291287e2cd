"""Detectors of a change of the gradient, a file each: config, class and state; see `hpclbfl.gradients.change`."""

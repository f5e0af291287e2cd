"""Sharpness of a trained net: the top eigenvalues of its loss's Hessian, and the Hessian's spectrum.

Fig. 3 of the paper: large batches end in sharper minima, and sharp minima generalise worse (N. Keskar et al., "On
Large-Batch Training for Deep Learning", ICLR 2017). The loss is the run's own (label smoothing included), the mean over
a fixed set of training samples that are not augmented; weight decay is left out. The net is in evaluation mode:
BatchNorm uses its running statistics, dropout is off.
"""

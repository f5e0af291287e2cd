"""Nets, one file for each family.

Each is made from its config and a `DataSpec`: the shape of a sample and the number of classes. It is a torch module
that maps a batch of samples to logits [N, K]. Its weights are drawn from torch's global generator, which was seeded
before. torch is loaded only when a net is made.
"""

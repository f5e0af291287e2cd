"""Side-by-side benchmarks: every figure is a ratio to a peer, measured in one run in which both took turns.

A machine's speed drifts by more than what is to be told apart. So the variants of a benchmark take turns, round by
round; a round gives one ratio, and the interval of their median comes from resampling rounds. Where an engine's
background thread would tax its neighbour each variant has a launch of its own.
"""

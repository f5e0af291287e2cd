"""Side-by-side benchmarks: every figure is a ratio to a peer, measured in one run in which both took turns.

A machine's speed drifts by more than the differences of interest. So the variants of a benchmark take turns, round by
round; each round gives one ratio, and the interval of their median comes from resampling rounds. Where an engine has a
background thread, which would slow the others down, each variant has its own launch.
"""

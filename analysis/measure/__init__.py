"""From frames to numbers: accuracies, times, statistics, summaries of arms, rows of figures."""

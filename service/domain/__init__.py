"""The vocabulary: studies, trials, their states and their search space. Pure: no I/O, no torch."""

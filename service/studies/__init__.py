"""Create and control studies: plans, admission, predictions, progress, confirmation, trials, removal."""

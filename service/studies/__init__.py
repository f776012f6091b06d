"""Create studies and steer them: plans, admission, predictions, progress, confirmation, trials, removal."""

"""The inputs of trials: base models, data splits, tokenised data."""

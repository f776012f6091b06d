"""What trials are made from: base models, data splits, tokenised data."""

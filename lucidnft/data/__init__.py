"""Images in, batches out: sources for training, held-out crops, and the degradations that make LR from HR."""

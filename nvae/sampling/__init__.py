"""Images from a trained model: batch-norm readjustment, samples, grids. Knows nothing of training."""

"""Use a trained model: tensors in, tensors out. Nothing here draws pictures."""

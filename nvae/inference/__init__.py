"""Use a trained model: tensors in, tensors out. Nothing here draws a picture or writes a file for people."""

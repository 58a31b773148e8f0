"""The code that runs eager CPU tensors, in blocks that stay in cache."""

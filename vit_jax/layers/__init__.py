"""Layers of the Vision Transformer. `kernels` has the functions with custom gradients."""

"""The parts of a Vision Transformer. Kernels with gradients of their own are in `kernels`."""

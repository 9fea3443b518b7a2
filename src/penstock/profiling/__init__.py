"""What this host does per second, measured with the engine's own kernels."""

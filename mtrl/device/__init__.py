"""CUDA graphs, copies between host and device, memory, CPU settings."""

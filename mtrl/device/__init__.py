"""CUDA graphs, copies between host and device, random streams, free memory, process-wide settings."""

"""Exports a policy as files for programs that have torch, numpy and safetensors, and loads it."""

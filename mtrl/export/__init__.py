"""A policy to take away: files that a program with torch, numpy and safetensors can act from."""

"""Agents: what acts and learns; one folder per agent."""

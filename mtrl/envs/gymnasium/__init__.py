"""Registered Gymnasium environments of one shape as a suite of tasks."""

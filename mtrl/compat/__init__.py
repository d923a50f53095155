"""Adapters for other libraries; nothing else in mtrl imports them."""

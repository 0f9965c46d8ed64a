"""Postrider delivers a CRM's outgoing webhooks from its own PostgreSQL."""

from importlib.metadata import version

__version__ = version("postrider")

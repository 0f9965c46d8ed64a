"""The daemon, composed of the services of the engine."""

from postrider.app.daemon import Daemon

__all__ = ["Daemon"]

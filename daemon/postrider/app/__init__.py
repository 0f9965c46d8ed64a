"""The daemon, composed of the services of the engine."""

from postrider.app.daemon import Daemon
from postrider.app.tuning import Tuning

__all__ = ["Daemon", "Tuning"]

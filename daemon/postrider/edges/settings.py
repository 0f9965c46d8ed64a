"""What is made of the configuration for those who need it in another form."""

from pathlib import Path

from postrider.domain.errors import UsageError
from postrider.domain.promises import RetrySettings
from postrider.domain.sealing import Sealer, parse_key
from postrider.edges.addresses import AddressPolicy
from postrider.edges.config import Config
from postrider.edges.network import NetworkOptions
from postrider.edges.randomness import random_bytes


def read_sealer(config: Config) -> Sealer:
    """The sealer of signing secrets; UsageError if the key file can't be used."""
    if config.secrets.key_file is None:
        return Sealer()
    path = Path(config.secrets.key_file)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"secrets.key_file {path} can't be read: {reason}", "Restore the file, or let this user read it."
        ) from None
    return Sealer(parse_key(text, str(path)), random_bytes)


def address_policy(config: Config) -> AddressPolicy:
    network = config.network
    return AddressPolicy(map(str, network.allow), map(str, network.deny), network.allow_ports)


def retry_settings(config: Config) -> RetrySettings:
    return RetrySettings(config.retry.schedule, config.retry.jitter, config.retry.disable_after)


def network_options(config: Config) -> NetworkOptions:
    return NetworkOptions(
        policy=address_policy(config),
        timeout=config.delivery.timeout,
        connect_timeout=config.delivery.connect_timeout,
        max_response_bytes=config.delivery.max_response_bytes,
        proxy=config.network.proxy,
        ca_file=config.network.ca_file,
        source_addresses=tuple(map(str, config.network.source_addresses)),
    )

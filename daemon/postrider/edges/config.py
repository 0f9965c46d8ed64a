import tomllib, ipaddress
from types import SimpleNamespace as N
from pathlib import Path
Config = N
def load_config(path, environ):
    d = tomllib.loads(Path(path or environ["POSTRIDER_CONFIG"]).read_text())
    g = lambda s, **kw: N(**{k: d.get(s, {}).get(k, v) for k, v in kw.items()})
    c = N(database=g("database", dsn=None, pool_size=4), delivery=g("delivery", concurrency=256, endpoint_concurrency=16, timeout=15.0, connect_timeout=5.0, drain_timeout=30.0, max_response_bytes=16384, user_agent="Postrider/0.1"),
      network=g("network", https_only=True, allow=(), deny=(), proxy=None, ca_file=None), dialect=g("dialect", default="standard", paths=()), retry=g("retry", schedule=None, jitter=0.1, disable_after=432000.0), admin=g("admin", listen="", public_url=None), log=g("log", level="info", format="auto"), retention=g("retention", events=30*86400., attempts=14*86400.), secrets=g("secrets", key_file=None))
    c.network.allow = tuple(ipaddress.ip_network(x) for x in c.network.allow)
    c.network.deny = tuple(ipaddress.ip_network(x) for x in c.network.deny)
    return c
def parse_duration(t): return float(t.rstrip("s"))

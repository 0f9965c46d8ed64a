import ipaddress

import pytest

from postrider.domain.errors import UsageError
from postrider.edges.addresses import AddressPolicy, AddressVerdict, explain

VERDICTS = {
    AddressVerdict.ALLOWED: """
        1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.17
        172.15.255.255 172.32.0.0 192.0.1.0 192.88.98.255 192.167.255.255 198.17.255.255 198.20.0.0
        203.0.112.255 223.255.255.255
        2606:4700::1111 2001:200::1 2001:4860:4860::8888 2003::1 3ffe::1
        ::ffff:1.1.1.1 64:ff9b::808:808 2002:808:808::1
    """,
    AddressVerdict.UNSPECIFIED: "0.0.0.0 :: ::ffff:0.0.0.0 2002::1",
    AddressVerdict.LOOPBACK: """
        127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 ::ffff:7f00:1 64:ff9b::127.0.0.1 2002:7f00:1::1
    """,
    AddressVerdict.PRIVATE: """
        10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 172.16.0.0 172.31.255.255 192.168.0.1
        fc00::1 fdff::1 fec0::1 ::ffff:10.1.2.3 64:ff9b::c0a8:1 2002:a00:1::
    """,
    AddressVerdict.LINK_LOCAL: "169.254.0.1 fe80::1 fe80::1%eth0 febf::1 ::ffff:169.254.1.1",
    AddressVerdict.METADATA: """
        169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 fd00:ec2::254 fd20:ce::254
        ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1
    """,
    AddressVerdict.MULTICAST: "224.0.0.1 239.255.255.255 ff02::1 ff0e::1 ::ffff:224.0.0.1",
    AddressVerdict.TRANSLATED: "192.88.99.1 64:ff9b:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2",
    AddressVerdict.RESERVED: """
        0.0.0.1 0.255.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
        240.0.0.1 255.255.255.255
        ::127.0.0.1 ::2 ::ffff:0:127.0.0.1 100::1 2001:2::1 2001:db8::1 3fff::1 4000::1 5f00::1 fe00::1
    """,
    AddressVerdict.MALFORMED: "2130706433 127.1 0x7f.1 0177.0.0.1 127.0.0.1. 1.1.1.1%eth0 localhost %eth0",
}


@pytest.mark.parametrize(
    ("address", "verdict"),
    [(address, verdict) for verdict, addresses in VERDICTS.items() for address in addresses.split()],
)
def test_address_gets_its_verdict(address: str, verdict: AddressVerdict) -> None:
    assert AddressPolicy().verdict(address) is verdict


def test_address_objects_are_judged_like_their_text() -> None:
    policy = AddressPolicy()
    assert policy.verdict(ipaddress.ip_address("::ffff:127.0.0.1")) is AddressVerdict.LOOPBACK
    assert policy.verdict(ipaddress.ip_address("fe80::1%eth0")) is AddressVerdict.LINK_LOCAL


def test_allow_lifts_the_built_in_rules_however_the_address_is_spelt() -> None:
    policy = AddressPolicy(allow=["127.0.0.0/8", "fd12::/16"])
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "fd12::1%eth0"):
        assert policy.verdict(address) is AddressVerdict.ALLOWED
    assert policy.verdict("10.0.0.1") is AddressVerdict.PRIVATE
    assert policy.verdict("::1") is AddressVerdict.LOOPBACK


def test_allowing_all_of_ipv6_does_not_open_ipv4_through_it() -> None:
    assert AddressPolicy(allow=["::/0"]).verdict("::ffff:10.0.0.1") is AddressVerdict.PRIVATE


def test_deny_wins_over_allow_however_the_address_is_spelt() -> None:
    policy = AddressPolicy(
        allow=["10.0.0.0/8", "8.8.8.0/24"], deny=["10.1.0.0/16", "8.8.8.8", "64:ff9b::/96"]
    )
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "2002:808:808::1", "64:ff9b::a02:303"):
        assert policy.verdict(address) is AddressVerdict.DENIED
    assert policy.verdict("10.2.2.3") is AddressVerdict.ALLOWED


def test_bad_network_is_refused_with_its_setting() -> None:
    with pytest.raises(UsageError, match=r"network\.allow: 10\.0\.0\.1/8 has host bits set"):
        AddressPolicy(allow=["10.0.0.1/8"])


def test_reason_names_address_verdict_and_way_out() -> None:
    assert explain("127.0.0.1", AddressVerdict.LOOPBACK) == (
        "127.0.0.1 is loopback; add it to network.allow to permit it"
    )
    assert explain("8.8.8.8", AddressVerdict.DENIED) == "8.8.8.8 is denied by network.deny"

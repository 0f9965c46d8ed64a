"""Whom the audit log names for a command."""

import os
import pwd
import socket

import pytest

from postrider.cli.common import operator
from postrider.domain.audit import Actor


def test_the_system_user_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert operator() == Actor(pwd.getpwuid(os.getuid()).pw_name, "cli", socket.gethostname())


def test_behind_sudo_who_asked_for_it_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    assert operator().who == "ada"


def test_a_user_that_no_file_lists_acts_by_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_011)
    assert operator().who == "uid 2000000011"

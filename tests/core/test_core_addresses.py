"""Addresses in messages: neither a user nor a password of theirs is shown, however odd the password is."""

from __future__ import annotations

import pytest

from kronos_pipeline.addresses import without_password, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:hidden@host:5000/mlflow", "http://host:5000/mlflow"),
        ("postgresql://me:hid/den@host/db", "postgresql://host/db"),
        ("postgresql://me:hid@den@host/db", "postgresql://host/db"),
        ("postgresql://me:hid?den@host/db", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=hidden&sslmode=require", "postgresql://host/db?sslmode=require"),
        ("https://host/mlflow?token=hidden", "https://host/mlflow"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("s3://bucket/folder", "s3://bucket/folder"),
    ],
)
def test_an_address_is_shown_without_user_and_password(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.mark.parametrize("password", ["hidden1", "hid/den1", "hid@den1:more1", "hid%40den1", "h?den1#more1"])
def test_messages_of_libraries_lose_the_parts_of_a_password(password: str) -> None:
    url = f"postgresql://someone:{password}@host/db"
    text = f"could not parse {url}: no host {password}, invalid port {password.split(':')[-1]} of someone"
    shown = without_secrets(text, url)
    assert "den1" not in shown
    assert "more1" not in shown
    assert "postgresql://host/db" in shown
    assert shown.endswith("of someone")


def test_a_message_about_an_address_without_a_password_stays() -> None:
    assert without_secrets("host/db is away", "postgresql://host/db") == "host/db is away"

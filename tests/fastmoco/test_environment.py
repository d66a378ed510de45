"""The record of what a run was made with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmoco.runs import environment as recorded


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--shards s3://bucket/set --lr 0.1", "--shards s3://bucket/set --lr 0.1"),
        ("--shards https://joe:pw@host/set", "--shards https://***@host/set"),
        ("--stream=https://tok@host/{0..9}.tar", "--stream=https://***@host/{0..9}.tar"),
        ("--src https://host/a.csv?X-Sig=abc&b=c --x", "--src https://host/a.csv?*** --x"),
        ("--header Authorization:secret --out b", "--header *** --out b"),
        ("--header=Authorization:secret", "--header=***"),
        ("--api-key 123 --hf_token 456", "--api-key *** --hf_token ***"),
        ("--header --out b", "--header --out b"),
    ],
)
def test_no_credentials_of_a_command_line_are_kept(words, kept):
    assert recorded.without_secrets(words.split()) == kept.split()


def test_no_credentials_of_settings_are_shown():
    given = {"a": ["https://u:p@h/x?y=z", 3], "b": {"c": "s3://bucket/x"}, "d": None}
    assert recorded.shareable(given) == {"a": ["https://***@h/x?***", 3], "b": {"c": "s3://bucket/x"}, "d": None}


def test_the_environment_names_the_commits_and_no_environment_variable(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-value")
    monkeypatch.setattr(sys, "argv", ["/x/fastmoco", "train", "--stream", "https://joe:pw@host/a b.tar"])
    monkeypatch.delattr(sys.modules["__main__"], "__spec__")
    assert recorded.environment()["project_commit"] is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=tmp_path, capture_output=True, text=True)
    assert recorded.environment()["project_commit"] == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    found = recorded.environment()
    assert found["project_commit"] == head.stdout.strip() + "-dirty"
    assert found["command"] == "/x/fastmoco train --stream 'https://***@host/a b.tar'"
    assert "hidden-value" not in str(found) and found["packages"]["torch"] and found["cores"]
    assert found["commit"] is None or found["commit"].removesuffix("-dirty").isalnum()

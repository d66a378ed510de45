"""Shell completion, asked of real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fastmoco.__main__ import COMMANDS
from fastmoco.architectures import ARCHITECTURES, MOCO_V3
from fastmoco.completion import SHELLS, script
from fastmoco.detection.settings import RECIPES as DETECTION
from fastmoco.recipes import RECIPES


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell))
    return folder


# what readline does at a tab: the function that `complete` registered, with the words and the index of the last one
BASH = """
source "$1"; shift
set -- fastmoco "$@"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p fastmoco | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
$function fastmoco "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(scripts, folder, *words):
    """What bash offers for the last of the words."""
    line = ["bash", "-c", BASH, "bash", scripts / "bash", *words]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_flags_values_and_files(scripts, tmp_path):
    assert bash(scripts, tmp_path, "") >= set(COMMANDS)
    assert bash(scripts, tmp_path, "de") == {"demo", "detect"}
    assert bash(scripts, tmp_path, "knn", "--t") == {"--train", "--temperature", "--threads"}
    assert bash(scripts, tmp_path, "export", "--format", "t") == {"torchvision", "timm"}
    assert bash(scripts, tmp_path, "train", "--arch", "") == {*ARCHITECTURES, *MOCO_V3}
    assert bash(scripts, tmp_path, "train", "--seed", "1", "--recipe", "") == set(RECIPES)
    assert bash(scripts, tmp_path, "detect", "--recipe", "") == set(DETECTION)
    assert bash(scripts, tmp_path, "completion", "") == set(SHELLS)
    (tmp_path / "shards").mkdir()
    (tmp_path / "encoder.pth").touch()
    assert bash(scripts, tmp_path, "train", "--shards", "sh") == {"shards"}
    assert bash(scripts, tmp_path, "verify", "sh") == {"shards"}
    assert bash(scripts, tmp_path, "knn", "--checkpoint", "enc") == {"encoder.pth"}


def test_every_flag_of_every_command_is_in_the_scripts(scripts):
    from fastmoco.__main__ import parser_of

    texts = {shell: (scripts / shell).read_text() for shell in SHELLS}
    for name in COMMANDS:
        shown = [a for a in parser_of(name)._actions if a.option_strings and a.help != "==SUPPRESS=="]
        for flag in (action.option_strings[-1] for action in shown):
            assert all(flag.lstrip("-") in text for text in texts.values()), (name, flag)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_its_script(scripts, tmp_path):
    shutil.copy(scripts / "zsh", tmp_path / "_fastmoco")
    line = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -uD; print $_comps[fastmoco]; zsh -n _fastmoco"
    done = subprocess.run(["zsh", "-fc", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_fastmoco\n", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands_and_values(scripts):
    def offered(line):
        asked = f"source {scripts / 'fish'}; complete --do-complete '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", asked], capture_output=True, text=True, check=True)
        assert not done.stderr
        return {each.split("\t")[0] for each in done.stdout.splitlines()}

    assert offered("fastmoco ") >= set(COMMANDS)
    assert offered("fastmoco export --format t") == {"torchvision", "timm"}

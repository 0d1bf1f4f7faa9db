"""Values of text are taken as a shell hands them over; what cannot be read is shown as it is written."""

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from src.config import hydra_internals
from src.config.composing import composed
from src.config.words import as_meant, check_hydra_keys, parted, quoted
from src.errors import UserError

BYTES = ("experiment=quickstart", "data=bytes")


def value_read(word: str) -> Any:
    """The value as Hydra reads it."""
    return OverridesParser.create().parse_override(word).value()


def path_of(word: str) -> str | None:
    return composed([*BYTES, word], checked=False).data.path


@pytest.mark.parametrize(
    "value",
    [
        "Hello, world!", "def é", "notes/my file (1).txt", "out/a=b", "it's", 'say "hi"', "[1,2]", "{a: b}", "true",
        "1e3", "007", " two  blanks ", "a,b", "50%", "C:\\dir", "x # y", "cost ${amount}!", "~notes", "*.txt", "a:b",
    ],
)  # fmt: skip
def test_text_stands_for_itself(value):
    assert path_of(f"data.path={value}") == value


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\$'\"", exclude_categories=("Cc", "Cs")), max_size=20))
def test_any_text_stands_for_itself(value):
    if value.lower() != "null" and value != "~" and not value.startswith("~/"):
        assert value_read(as_meant([f"data.path={value}"])[0]) == value


def test_a_home_directory_is_meant_where_a_place_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    words = ["data.path=~/notes", "paths.output_dir=~/runs", "run=~/runs/one", "paths.data_dir=~", "prompt=~/notes"]
    read = ["/home/somebody/notes", "/home/somebody/runs", "/home/somebody/runs/one", "/home/somebody", "~/notes"]
    assert [value_read(word) for word in as_meant(words)] == read


@pytest.mark.parametrize("tags", [["a b", "c,d"], ["[e]", "{f: g}"], ["it's", 'say "hi"'], ["é", "null", "1"], []])
def test_lists_may_be_written_as_python_does(tags):
    assert composed(["experiment=quickstart", f"logger.tags={tags}"], checked=False).logger.tags == tags


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("data.path='a, b'", "a, b"), ('data.path="a b"', "a b"), ("data.path=null", None), ("data.path=", ""),
        ("data.path=${name}", "bytes-fixed-d3-fp32"), ("data.path=a\\,b", "a,b"),
    ],
)  # fmt: skip
def test_what_is_written_for_hydra_is_hydras(word, read):
    assert path_of(word) == read


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20).filter(lambda s: "${" not in s)
)
def test_quoted_is_read_back(value):
    assert value_read(f"data.path={quoted(value)}") == value


def test_commas_part_values_in_a_sweep_alone():
    assert as_meant(["name=a,b"], sweep=True) == ["name=a,b"]
    assert as_meant(["name=a,b"]) == ["name='a,b'"]
    assert as_meant(["data.path=é 1"], sweep=True) == ["data.path='é 1'"]
    with pytest.raises(UserError, match="cannot be read as KEY=VALUE: write"):
        as_meant(["data.path=é,b!"], sweep=True)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("model.depth=[", "model.depth must be an integer, found '['"),
        ("logger.tags=[a b!,c]", 'cannot be read as KEY=VALUE: write \'logger.tags=["a b!","c"]\''),
    ],
)
def test_what_cannot_be_read_is_shown_as_it_is_written(word, sentence):
    with pytest.raises(UserError) as refused:
        as_meant([word])
    assert str(refused.value).endswith(sentence)


def test_the_word_that_is_shown_can_be_pasted():
    with pytest.raises(UserError) as refused:
        as_meant(["logger.tags=[a b!,c]"])
    (word,) = shlex.split(str(refused.value).partition(" write ")[2])
    assert composed(["experiment=quickstart", word]).logger.tags == ["a b!", "c"]


@pytest.mark.parametrize(
    ("line", "keys", "options"),
    [
        ("experiment=quickstart --info", ["experiment=quickstart"], ["--info"]),
        ("--info defaults experiment=quickstart", ["experiment=quickstart"], ["--info", "defaults"]),
        ("--info experiment=quickstart", ["experiment=quickstart"], ["--info"]),
        ("--config-dir my=conf experiment=mine -m", ["experiment=mine"], ["--config-dir", "my=conf", "-m"]),
        ("seed=1 -m seed=2,3", ["seed=1", "seed=2,3"], ["-m"]),
        ("--seed=3 --optimizer.learning_rate=0.1", ["seed=3", "optimizer.learning_rate=0.1"], []),
        ("--attention=dense --debug=none --data.path=[a]", ["attention=dense", "debug=none", "data.path=[a]"], []),
        ("--sed=3", [], ["--sed=3"]),
        ("--wandb=quickstart", [], ["--wandb=quickstart"]),
    ],
)
def test_options_keep_their_values(line, keys, options):
    assert parted(line.split(), hydra_internals.get_args_parser()) == (keys, options)


def test_keys_of_hydra_without_effect_are_refused():
    check_hydra_keys(["hydra.launcher.jobs=2", "hydra.sweeper.trials=3", "hydra/launcher=slurm", "seed=1"])
    for word, instead in (
        ("hydra.sweep.dir=x", "paths.output_dir"),
        ("hydra.job.name=x", "name is"),
        ("hydra.x=1", ""),
    ):
        with pytest.raises(UserError, match=f"{word.partition('=')[0]} does nothing here: {instead}"):
            check_hydra_keys([word])

"""What colours, dashes and panels of charts tell."""

import itertools

from src.reporting.charts import FULL, NARROW, lines_svg
from src.reporting.draw import line_charts, look, palette
from tests.reporting.test_compare import FAST, record


def grid(**values):
    keys = [key.replace("__", ".") for key in values]
    return [
        record(each[keys.index("attention")] if "attention" in keys else "dense", FAST, "finished", None,
               dict(zip(keys, each, strict=True)))
        for each in itertools.product(*values.values())
    ]  # fmt: skip


FOUR = {"attention": ("dense", "fixed", "strided"), "model__depth": ("12", "30"), "precision": ("bf16", "fp16"),
        "recipe": ("modern", "paper")}  # fmt: skip


def test_of_four_settings_colours_tell_attention_dashes_the_recipe_and_panels_the_rest():
    runs = grid(**FOUR)
    its = look(runs)
    assert (its.hue, its.panel) == ("attention", ("model.depth", "precision"))
    assert {its.style_of(run) for run in runs} == {"recipe modern", "recipe paper"}
    chart = line_charts(runs)[0]
    assert list(chart.panels) == ["depth 12, bf16", "depth 12, fp16", "depth 30, bf16", "depth 30, fp16"]
    assert all(len(curves) == 6 for curves in chart.panels.values())


def test_panels_have_one_legend_and_the_same_axes():
    runs = grid(**FOUR)
    for width in (FULL, NARROW):
        drawing = lines_svg(line_charts(runs)[0], palette(runs), width)
        assert drawing.count(">recipe paper</text>") == 1
        assert drawing.count(">strided</text>") == 1
        assert drawing.count('class="heading"') == 4
        assert len(set(drawing.split('<g transform="translate')[1:5])) == 4
        assert drawing.count(">5.0</text>") == 4


def test_without_a_recipe_the_dashes_tell_the_first_of_the_others():
    its = look(grid(attention=("dense", "fixed"), model__depth=("2", "4"), precision=("bf16", "fp32")))
    assert its.panel == ("precision",)


def test_one_setting_beside_the_attention_needs_no_panels():
    assert look(grid(attention=("dense", "fixed"), model__depth=("2", "4"))).panel == ()


def test_of_one_attention_the_first_setting_has_the_colours():
    its = look(grid(model__depth=("2", "4"), precision=("bf16", "fp32"), recipe=("modern", "paper")))
    assert (its.hue, its.panel) == ("model.depth", ("precision",))


def test_too_many_panels_are_none():
    assert look(grid(attention=("dense", "fixed"), recipe=("modern", "paper"), rate=tuple("123456789"))).panel == ()

"""The page and the Markdown: self-contained, escaped, honest about partial data, whatever state runs are in."""

import re
from html.parser import HTMLParser

import pytest

from scripts.report import main
from src.reporting.content import report, tiles
from src.reporting.load import load
from src.reporting.markdown import markdown, plain
from src.reporting.page import page
from tests.reporting.made import config, entry, every_state, four_settings, run, sample, sweep

SCRIPT = "<script>alert(1)</script>"
LOADS = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Elements(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]


def made(folder) -> str:
    return page(report(load([folder])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made(every_state(tmp_path_factory.mktemp("sweeps") / "s"))


def test_nothing_is_loaded_from_anywhere(whole):
    elements = Elements(whole)
    assert not {"script", "iframe", "object", "embed"} & set(elements.tags)
    assert elements.tags.count("link") == 1  # the empty icon, so that no browser asks for one
    assert all(value.startswith("data:") for name, value in elements.attributes if name in LOADS)
    assert not re.search(r"@import|url\(", whole)
    assert set(re.findall(r"https?://[^\s\"'<]+", whole)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_it_says_that_the_data_are_partial(whole):
    assert "Partial data: enwik8, partial: first 1,000,000 bytes of 100,000,000" in whole
    assert whole.count("NOT comparable with published figures") == 2  # above, and below the table
    assert "another model (context 500 instead of 12,288" in whole


def test_every_state_is_shown(whole):
    for words in ("2 finished", "1 interrupted", "1 failed", "1 waiting", "Not all runs are finished"):
        assert words in whole
    assert "a-dense-4: it &lt;broke&gt; &amp; ended" in whole
    assert "depth 4" not in whole  # no figure yet: those runs are in the table of runs alone


def test_figures_are_in_the_tables(whole):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", whole))
    assert "dense 4.300 200 1.00× 1.00 1,310 1.00×" in text
    assert "fixed 4.250 100 2.00× 0.99 550 2.38×" in text
    assert (
        "depth 2 · equal bytes 30 kB · equal time 3 s dense 4.200 4.200 5.000 30 6 s fixed 4.100 4.100 4.100 30 3 s"
        in text
    )


def test_samples_and_pictures_are_in_the_page(whole):
    assert "The sample" in whole
    assert "an older one" not in whole
    assert whole.count('src="data:image/webp;base64,') == 2  # learned attention and the pattern
    assert 'width="720" height="240"' in whole  # made smaller


def test_what_users_and_models_wrote_is_escaped(tmp_path):
    name = "x<b>&y"
    folder = run(tmp_path / name, config(), [(10, 1.0, 5.0)], test=5.0, label=SCRIPT)
    sample(folder, SCRIPT + "\n| a | `b` | ![c](http://d)")
    sweep(tmp_path, [entry(0, name, "failed", {"attention": "dense", "model.<i>": SCRIPT}, error=SCRIPT)])
    found = report(load([tmp_path]))
    elements = Elements(page(found))
    assert not {"script", "i"} & set(elements.tags)
    assert elements.tags.count("b") == len(found.tiles)  # none of the run's name
    text, _ = markdown(found, "report")
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "<script>" not in outside
    assert "](http" not in outside


def test_markdown_has_the_same_tables_and_its_pictures_as_files(tmp_path):
    found = report(load([every_state(tmp_path / "s")]))
    text, files = markdown(found, "my report")
    assert "| dense | 4.300 | 200 | 1.00× | 1.00 | 1,310 | 1.00× |" in text
    assert "| fixed | **4.250** | 100 | 2.00× | 0.99 | 550 | 2.38× |" in text
    assert "> **Partial data: enwik8, partial" in text
    named = set(re.findall(r"\]\(my%20report/([^)]+)\)", text))
    assert named == set(files)
    assert {name.rpartition(".")[2] for name in files} == {"svg", "webp"}
    assert b"<style>" in files["speed.svg"]
    assert len(re.findall(r"\| a-[^|]* \|$", text, re.M)) == 5  # runs
    assert len(re.findall(r"^\| a-", text, re.M)) == 3  # those that have a configuration


def test_plain():
    assert plain("a|b *c* <d>\ne") == "a\\|b \\*c\\* &lt;d&gt; e"


def test_several_seeds_are_a_mean_and_a_spread(tmp_path):
    jobs = []
    for seed, test in ((1, 4.0), (2, 4.2)):
        name = f"d-{seed}"
        run(tmp_path / name, config(seed=seed), [(10, 1.0, 5.0)], test=test)
        jobs.append(entry(seed, name, "finished", {"attention": "dense", "seed": str(seed)}))
    text = made(sweep(tmp_path, jobs))
    assert "4.100 ± 0.141" in text
    assert "standard deviation over seeds" in text


def test_one_attention_is_coloured_by_what_varies(tmp_path):
    jobs = []
    for depth in (2, 4):
        run(tmp_path / f"d{depth}", config(depth=depth), [(10, 1.0, 5.0), (20, 2.0, 4.0)], test=4.0)
        jobs.append(entry(depth, f"d{depth}", "finished", {"model.depth": str(depth)}))
    text = made(sweep(tmp_path, jobs))
    assert ">depth 2</text>" in text
    assert "line hue-1" in text


def test_a_search_shows_its_best_trials(tmp_path):
    jobs = []
    for trial in range(20):
        content = config("fixed", optimizer={"learning_rate": 0.001 * (trial + 1)})
        run(tmp_path / f"t{trial}", content, [(10, 1.0, 5.0 - trial / 10), (20, 2.0, 4.9 - trial / 10)], test=4.0)
        overrides = {"optimizer.learning_rate": f"{0.001 * (trial + 1):.3f}"}
        jobs.append(entry(trial, f"t{trial}", "finished", overrides))
    found = report(load([sweep(tmp_path, jobs)]))
    headings = [row[0].partition(" · ")[0] for row in found.table2.rows if len(row) == 1]
    assert headings == [f"learning rate {0.001 * trial:.3f}" for trial in range(20, 8, -1)]
    assert found.table2.notes[-1] == "The 12 best by validation of 20; all are in the table of runs."
    assert len(found.runs.rows) == 20
    assert found.palette.dashes == {}  # twenty kinds of dashes tell nothing
    assert "stroke-dasharray" not in page(found)


def test_four_settings_in_one_sweep_are_told_apart(tmp_path):
    found = report(load([four_settings(tmp_path / "s")]))
    assert any("recipe: modern is best at equal bytes (−1.000 against paper" in row[0] for row in found.effects.rows)
    assert found.runs.columns[:5] == ["rank", "attention", "depth", "precision", "recipe"]
    assert found.tiles[0].what.startswith(
        "best bits per byte, validation: dense, depth 12, bf16, recipe modern (1,200.0 ms"
    )
    text, files = markdown(found, "r")
    assert text.index("## What each choice is worth") < text.index("## Runs") < text.index("## Loss")
    assert files["validation-against-time.svg"].count(b'class="heading"') == 4
    assert page(found).count('class="card whole"') == 4


def test_what_failed_is_told_at_the_top(whole):
    assert whole.index("Failed: a-dense-4: it &lt;broke&gt; &amp; ended.") < whole.index("<h2>Runs</h2>")


def test_a_sweep_that_has_not_begun(tmp_path):
    text = made(sweep(tmp_path, [entry(0, "a", "waiting", {"attention": "dense"}, run=None)]))
    assert "No run has a figure yet." in text
    assert "No run has logged a loss yet." in text
    assert "No run has logged its speed yet." in text


def test_whole_data_carry_no_warning(tmp_path):
    folder = run(tmp_path / "r", config(), [(10, 1.0, 5.0)], test=5.0, partial=False, label="enwik8")
    found = report(load([folder]))
    assert found.warnings == []
    assert [tile.value for tile in tiles([])] == []


def test_other_data_are_named(tmp_path):
    content = config(data__name="quickstart")
    folder = run(tmp_path / "r", content, [(10, 1.0, 5.0)], test=5.0, partial=False, label="quickstart (Python)")
    text = made(folder)
    assert "Other data than the paper&#39;s table: quickstart (Python). Not comparable with published figures." in text
    assert "paper: bits per byte" not in text


def test_a_broken_picture_is_noted_and_left_out(tmp_path):
    folder = run(tmp_path / "r", config(), [(10, 1.0, 5.0)], test=5.0)
    sample(folder)
    (folder / "pattern.png").write_bytes(b"no picture")
    assert "pattern.png cannot be shown" in made(folder)


def test_the_command_writes_three_things_and_says_where(tmp_path, capsys):
    folder = every_state(tmp_path / "s")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(folder / "report.md")]
    assert (folder / "report" / "speed.svg").is_file()
    assert main([str(folder), "--output", str(tmp_path / "new" / "x.html")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"x.html", "x.md", "x"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is neither a sweep's folder nor a run directory: there is no such folder"),
        (["."], "holds neither sweep.json (a sweep) nor config.yaml (a run)"),
        (["s", "--output", "x.txt"], "--output must be a file whose name ends in .html, found x.txt"),
        (["s", "--output", "s/sweep.json/x.html"], "sweep.json"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    every_state(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sentence in said

"""Which rate of a row counts, what trained it in words, and where another library's model stands."""

import pytest

from src.reporting.peers import MODEL, is_peer, named, stand_beside
from src.reporting.recipe import rates, schedule, tuned_by
from src.reporting.tuning import RATE, Tuning, counts, place, tunings
from tests.reporting.test_compare import record


def tried(pattern, seed, rate, bits, state="finished", **settings):
    found = record(pattern, [(100, 1.0, 9.0), (200, 2.0, bits)], state, settings={"attention": pattern, **settings})
    found.settings["seed"] = str(seed)
    found.config |= {RATE: rate}
    return found


def test_the_seed_with_most_rates_chooses_by_its_last_validation():
    runs = [tried("fixed", 1, "0.02", 1.0), tried("fixed", 2, "0.02", 3.0), tried("fixed", 2, "0.01", 2.5),
            tried("fixed", 2, "0.1", 2.0, "stopped"), tried("dense", 1, "0.03", 2.0)]  # fmt: skip
    found = tunings(runs)
    assert found[place("fixed", {})] == Tuning("2", {"0.01": 2.5, "0.02": 3.0, "0.1": None})
    assert found[place("fixed", {})].best == "0.01" and found[place("dense", {})].best == "0.03"
    assert [counts(run, found) for run in runs] == [False, False, True, False, True]
    assert counts(record("fixed"), found)  # whose rate nobody looked for


def test_rows_of_other_settings_have_rates_of_their_own():
    runs = [tried("fixed", 1, "0.01", 2.0, depth="2"), tried("fixed", 1, "0.02", 3.0, depth="2"),
            tried("fixed", 1, "0.01", 3.0, depth="4"), tried("fixed", 1, "0.02", 2.0, depth="4")]  # fmt: skip
    found = tunings(runs)
    assert [counts(run, found) for run in runs] == [True, False, False, True]


@pytest.mark.parametrize(
    ("bits", "edge"), [((1, 2, 3), True), ((3, 2, 1), True), ((2, 1, 3), False), ((None, 1, 2), False), ((1,), False)]
)
def test_a_best_rate_at_the_edge_of_several_is_known(bits, edge):
    assert Tuning("1", {f"0.{i}": each for i, each in enumerate(bits, start=1)}).at_the_edge is edge


def test_without_a_finished_run_all_count():
    run = tried("fixed", 1, "0.01", 2.0, "stopped")
    found = tunings([run])
    assert found[place("fixed", {})].best is None and counts(run, found)


def test_what_trained_a_run_in_words():
    run = record()
    assert rates(run) == "" and schedule(run) == "cosine decay to 0"
    run.config |= {"optimizer.learning_rate": 0.0007, "optimizer.warmup_steps": 100, "optimizer.name": "adamw"}
    assert rates(run) == "AdamW 0.0007" and schedule(run) == "100 steps of warm-up, cosine decay to 0"
    assert rates(run, of_row=True) == "AdamW at the rate of each row" and tuned_by(run) == "AdamW's"
    run.config |= {"optimizer.name": "muon", "optimizer.muon_learning_rate": 0.02, "optimizer.warmup_steps": None,
                   "optimizer.warmup_share": 0.05, "optimizer.warmup_most": 100, "optimizer.schedule": "linear",
                   "optimizer.decay_share": 0.4, "trainer.max_steps": 8500}  # fmt: skip
    assert rates(run) == "Muon 0.02, AdamW 0.0007" and tuned_by(run) == "Muon's"
    assert schedule(run) == "100 steps of warm-up, constant, then linear to 0 over the last 40% of the steps"


def test_a_peer_stands_beside_those_of_ours_that_are_most_alike():
    small, large, peer = record("fixed", settings={"attention": "fixed", "depth": "2"}), record("fixed"), record()
    small.config["model.depth"], large.config["model.depth"], peer.config["model.depth"] = 2, 4, 4
    large.settings = {"attention": "fixed", "depth": "4", "seed": "7"}
    peer.config[MODEL] = "theirs"
    run = named(peer)
    assert (is_peer(run), is_peer(small), run.attention, named(small)) == (True, False, "theirs", small)
    stand_beside([run], [small, large])
    assert run.settings == {"attention": "theirs", "seed": "1", "depth": "4"}
    stand_beside([run], [])
    assert run.settings == {"attention": "theirs", "seed": "1"}

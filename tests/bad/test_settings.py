"""Keys, types, ranges, and what wandb's settings must be."""

import pytest

from tests.bad.door import Bad, file

CORPUS = "data=bytes data.path=corpus.txt"
LONG = "x" * 65


def train(arguments: str, sentence: str, **env: str) -> Bad:
    return Bad(f"train {arguments}", sentence, file("corpus.txt", b"hello " * 5000), {"WANDB_MODE": None, **env})


TABLE = {
    # keys
    "unknown key": train("modle.depth=3", r"modle.depth is not a key .*did you mean model.depth\?"),
    "added key": train("+extra=1", "extra is not a key of the configuration"),
    "unknown choice": train("precision=fp17", "precision=fp17 is no choice of .*: allowed are bf16, fp16, fp32"),
    "unknown group": train("modell=small", r"modell is not a key .*did you mean model\?"),
    "a removed key": train("~data.context", "~data.context takes away what every run needs"),
    "a removed group": train("~optimizer", "~optimizer takes away what every run needs"),
    "value missing": train("data=bytes", "data.path has no value: give it as data.path=VALUE"),
    "not KEY=VALUE": train("model.depth", "'model.depth' .*KEY=VALUE"),
    "bracket left open": train("model.depth=[", r"model.depth must be an integer, found '\['"),
    "interpolation to nowhere": train("name=${nowhere}", "name cannot be resolved: .*nowhere"),
    "unknown option": train("--devices=2", "--devices=2 is no option: keys are given as KEY=VALUE"),
    "unknown choice of an option": train("--cfg=jobs", ".*--cfg.*invalid choice"),
    "unknown config name": train("--config-name=nowhere", "--config-name=nowhere is no file of conf/"),
    "a sweep over an unknown key": Bad(
        "train -m model.dept=1,2", r"model.dept is not a key .*did you mean model.depth\?"
    ),
    # types
    "text for a number": train("model.depth=abc", "model.depth must be an integer, found 'abc'"),
    "fraction for an integer": train("model.depth=2.5", "model.depth must be an integer, found"),
    "word for a switch": train("trainer.progress=maybe", "trainer.progress must be true or false, found 'maybe'"),
    "number for a list": train("logger.tags=3", "logger.tags must be a list, found"),
    "list for a number": train("model.width=[1,2]", "model.width must be an integer, found"),
    "table for a number": train("seed={a:1}", "seed must be an integer, found"),
    "null for a number": train("model.depth=null", "model.depth must be an integer, found"),
    "text for a group's table": train("+model.depth.x=1", ".*model.depth"),
    # ranges
    "zero": train("model.depth=0", "model.depth must be at least 1, found 0"),
    "negative": train("data.workers=-1", "data.workers must be at least 0, found -1"),
    "one for a share": train("model.dropout=1", "model.dropout must be below 1, found 1.0"),
    "more than a whole share": train("optimizer.decay_share=2", "optimizer.decay_share must be at most 1, found 2.0"),
    "unknown recipe": train("recipe=old", "recipe=old is no choice of conf/recipe/: allowed are modern, paper"),
    "not a number": train("model.dropout=nan", "model.dropout must be at least 0, found nan"),
    "infinite": train("optimizer.learning_rate=inf", "optimizer.learning_rate must be finite, found inf"),
    "seed too large": train("seed=2147483648", "seed must be below 2147483648, found"),
    "name of a path": train("name=a/b", "name must be made of letters, digits, .*found 'a/b'"),
    "name too long": train(f"name={'x' * 300}", "name must have at most 200 characters, found 300"),
    # keys together
    "summary beyond the stride": train("attention.summary=200", r"attention.summary must divide stride \(32\)"),
    "heads too narrow to turn": train(
        "model.heads=128", "model.rotary needs an even width of a head's queries and keys, found 1: change model.heads"
    ),
    "heads beside the width": train("model.heads=7", r"model.heads must divide model.width \(128\), found 7"),
    "one head for two sets": train("attention.mode=multihead model.heads=1", "model.heads must be at least 2"),
    "micro-batch beside the batch": train("data.micro_batch=3", "data.micro_batch must divide the 8 sequences"),
    "batch beside the devices": train("trainer.devices=3", "data.batch_size must be a multiple of the 3 devices"),
    "a short context that does not divide the context": train(
        f"{CORPUS} data.context=64 optimizer.short_context_steps=5 optimizer.short_context=24",
        r"optimizer.short_context must divide data.context \(64\), found 24",
    ),
    "no byte between documents": train(f"{CORPUS} data.documents=''", "data.documents must have at least one byte"),
    "an escape that is none": train(
        rf"{CORPUS} data.documents=a\q", r"data.documents must have no backslash but those of .*, found 'a\\\\q'"
    ),
    "documents told apart twice": train(
        f"{CORPUS} data.documents=; data.document_offsets=o", "data.documents and data.document_offsets exclude each"
    ),
    "documents of pictures": train(
        "experiment=cifar10 data.documents=;", "data.documents must be null for data=cifar10, found ';'"
    ),
    "offsets in pictures": train(
        "experiment=imagenet64 data.document_offsets=o.npy", "data.document_offsets must be null for data=imagenet64"
    ),
    "text positions, picture size": train("experiment=cifar10 data.context=3000", "data.context must be 3072"),
    "context beyond the file": train(
        f"{CORPUS} data.context=30000 logger=csv", "data.context must be at most 13,500 for the 27,000 training bytes"
    ),
    "split beyond the context": train(f"{CORPUS} model.width=9", "model.heads must divide model.width"),
    "more memory than there is": train(
        f"{CORPUS} model.width=1048576 model.depth=1 logger=csv", "there is not enough memory .*data.micro_batch"
    ),
    # wandb
    "wandb: unknown mode": train("", "WANDB_MODE must be one of online, offline, .*found 'of'", WANDB_MODE="of"),
    "wandb: address without scheme": train("", "WANDB_BASE_URL must be an addr", WANDB_BASE_URL="api.wandb.ai"),
    "wandb: empty address": train("", "WANDB_BASE_URL must be an address", WANDB_BASE_URL=""),
    "wandb: port of letters": train("", "WANDB_BASE_URL must be an address", WANDB_BASE_URL="http://a:b"),
    "wandb: password in a bad address": train(
        "", "WANDB_BASE_URL must be an address .*found 'ftp://host'", WANDB_BASE_URL="ftp://me:secret@host"
    ),
    "wandb: key too short": train("", "WANDB_API_KEY must be .* found one of 8 characters:", WANDB_API_KEY="abcd1234"),
    "wandb: key with a blank": train("", "WANDB_API_KEY must be a key", WANDB_API_KEY=f"{'a' * 20} {'a' * 20}"),
    "wandb: slash in the project": train("logger.project=me/it", "logger.project must be 1 to 128 .*found 'me/it'"),
    "wandb: no project": train("logger.project=''", "logger.project must be 1 to 128 characters"),
    "wandb: slash in the entity": train("logger.entity=a/b", "logger.entity must be 1 to 128 characters"),
    "wandb: tag too long": train(f"logger.tags=[{LONG}]", "logger.tags must have 1 to 64 characters each"),
    "wandb: empty tag": train("logger.tags=['']", "logger.tags must have 1 to 64 characters each, found ''"),
}


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused):
    refused(TABLE[name], name)

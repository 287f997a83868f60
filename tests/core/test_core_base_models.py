from __future__ import annotations

import json
from pathlib import Path

import pytest

from kronos_pipeline.base_models import DEFAULT_CONTEXT, NANO_FOLDER, WeightsSource, find_base_model
from kronos_pipeline.errors import ModelError

SMALL_REVISION = "901c26c1332695a2a8f243eb2f37243a37bea320"
BASE_TOKENIZER_REVISION = "0e0117387f39004a9016484a186a908917e22426"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "published", "tokenizer", "context"),
    [
        ("NeoQuasar/Kronos-small", "NeoQuasar/Kronos-small", "NeoQuasar/Kronos-Tokenizer-base", 512),
        ("kronos-small", "NeoQuasar/Kronos-small", "NeoQuasar/Kronos-Tokenizer-base", 512),
        ("neoquasar/KRONOS-Mini", "NeoQuasar/Kronos-mini", "NeoQuasar/Kronos-Tokenizer-2k", 2048),
        ("Kronos-base", "NeoQuasar/Kronos-base", "NeoQuasar/Kronos-Tokenizer-base", 512),
    ],
)
def test_published_names_in_any_case_bring_their_tokenizer_and_context(
    name: str, published: str, tokenizer: str, context: int
) -> None:
    source = find_base_model(name)
    assert (source.name, source.predictor.repository) == (published, published)
    assert (source.tokenizer.repository, source.context) == (tokenizer, context)
    assert (source.demo, source.label) == (False, published)


def test_published_weights_are_pinned() -> None:
    source = find_base_model("Kronos-small")
    assert (source.predictor.revision, source.tokenizer.revision) == (SMALL_REVISION, BASE_TOKENIZER_REVISION)
    mini = find_base_model("Kronos-mini")
    assert len({mini.predictor.revision, mini.tokenizer.revision, SMALL_REVISION, BASE_TOKENIZER_REVISION}) == 4


@pytest.mark.parametrize("name", ["kronos-nano", "Kronos-Nano"])
def test_the_embedded_model_says_that_it_is_a_demo(name: str) -> None:
    source = find_base_model(name)
    assert (source.name, source.label, source.demo) == ("kronos-nano", "kronos-nano (embedded demo model)", True)
    assert (source.predictor.folder, source.tokenizer.folder) == (NANO_FOLDER / "predictor", NANO_FOLDER / "tokenizer")


def test_a_hub_repository_is_taken_at_the_commit_that_is_given() -> None:
    source = find_base_model(f"someone/my-kronos@{COMMIT}", f"someone/my-tokenizer@{COMMIT}")
    assert source.name == source.predictor.name == f"someone/my-kronos@{COMMIT}"
    assert (source.predictor.repository, source.predictor.revision) == ("someone/my-kronos", COMMIT)
    assert (source.tokenizer.repository, source.tokenizer.revision) == ("someone/my-tokenizer", COMMIT)
    assert source.context == DEFAULT_CONTEXT


def test_another_commit_of_a_published_model_keeps_its_tokenizer_and_context() -> None:
    source = find_base_model(f"NeoQuasar/Kronos-mini@{COMMIT}")
    assert source.predictor.revision == COMMIT
    assert (source.tokenizer.name, source.context) == ("NeoQuasar/Kronos-Tokenizer-2k", 2048)


def test_a_local_folder_may_hold_both_parts(in_folder: Path) -> None:
    for part in ("predictor", "tokenizer"):
        (in_folder / "mine" / part).mkdir(parents=True)
    (in_folder / "mine" / "predictor" / "manifest.json").write_text(json.dumps({"context": 96}))
    source = find_base_model("mine")
    assert source.predictor == WeightsSource("mine", folder=Path("mine/predictor"))
    assert source.tokenizer == WeightsSource("mine", folder=Path("mine/tokenizer"))
    assert (source.name, source.context, source.demo) == ("mine", 96, False)


@pytest.mark.parametrize(("part", "missing"), [("predictor", "tokenizer"), ("tokenizer", "predictor")])
def test_a_folder_with_one_part_of_two_says_which_is_missing(part: str, missing: str, in_folder: Path) -> None:
    (in_folder / "mine" / part).mkdir(parents=True)
    with pytest.raises(ModelError, match=rf"mine holds {part}/ and no {missing}/"):
        find_base_model("mine")


def test_a_local_folder_may_hold_the_predictor_alone(in_folder: Path) -> None:
    (in_folder / "mine").mkdir()
    source = find_base_model("mine")
    assert source.predictor.folder == Path("mine")
    assert source.tokenizer.repository == "NeoQuasar/Kronos-Tokenizer-base"
    assert source.context == DEFAULT_CONTEXT


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ("tok", WeightsSource("tok", folder=Path("tok"))),
        ("both", WeightsSource("both", folder=Path("both/tokenizer"))),
        ("kronos-NANO", WeightsSource("kronos-nano", folder=NANO_FOLDER / "tokenizer")),
    ],
)
def test_a_tokenizer_of_ones_own_goes_with_any_predictor(
    tokenizer: str, expected: WeightsSource, in_folder: Path
) -> None:
    (in_folder / "tok").mkdir()
    (in_folder / "both" / "tokenizer").mkdir(parents=True)
    source = find_base_model("Kronos-small", tokenizer)
    assert source.tokenizer == expected
    assert source.predictor.repository == "NeoQuasar/Kronos-small"


def test_a_published_tokenizer_is_found_by_its_short_name() -> None:
    source = find_base_model("kronos-nano", "kronos-tokenizer-2k")
    assert source.tokenizer.name == "NeoQuasar/Kronos-Tokenizer-2k"


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "someone/my-kronos",
        f"someone/my-kronos@{COMMIT[:7]}",
        "someone/my-kronos@main",
        "NeoQuasar/Kronos-Tokenizer-base",
        "~no-such-user-here/kronos",
        "../nowhere",
    ],
)
def test_an_unknown_model_is_refused_with_what_can_be_used_instead(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_base_model(name)
    message = str(caught.value)
    assert repr(name) in message
    for choice in ("kronos-nano", "NeoQuasar/Kronos-small", "a local folder", "owner/name@"):
        assert choice in message


def test_an_unknown_tokenizer_is_refused_with_the_tokenizers_there_are() -> None:
    with pytest.raises(ModelError, match=r"No tokenizer is called 'Kronos-small'.*NeoQuasar/Kronos-Tokenizer-2k"):
        find_base_model("Kronos-small", "Kronos-small")


@pytest.mark.parametrize("text", ["", "[]", '{"bars": 512}', '{"context": "many"}', '{"context": null}'])
def test_a_folder_whose_manifest_tells_no_context_is_refused(text: str, in_folder: Path) -> None:
    (in_folder / "mine").mkdir()
    (in_folder / "mine" / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"mine/manifest\.json: no readable entry 'context'"):
        find_base_model("mine")

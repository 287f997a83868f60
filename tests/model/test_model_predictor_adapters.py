"""Series of several adapters in one call: each series is forecast by its own adapter, given as a model or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from price_frames import assert_forecast, batch_of, candles, sharp_predictor, sharp_tokenizer, with_lora
from sktime.libs.kronos import Kronos, KronosTokenizer
from sktime.libs.kronos import KronosPredictor as Upstream
from tiny_models import save_tiny_base, tiny_predictor

from kronos_pipeline import KronosPredictor
from kronos_pipeline.artifacts import write_manifest
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.model.loading import KronosModel, base_identity, load_base
from kronos_pipeline.model.lora import add_lora, load_adapter, save_adapter
from kronos_pipeline.model.modules import copy_sharing_weights

HORIZON, PATHS = 5, 3
LENGTHS = (20, 31, 1, 12)
DFS = [candles(bars, seed) for seed, bars in enumerate(LENGTHS)]
BATCH = batch_of(DFS, HORIZON)
TOKENIZER = sharp_tokenizer()


def own_base(seed: int) -> Any:
    """Return another model with an adapter, without shared weights."""
    return with_lora(sharp_predictor(seed=seed))


def adapters() -> tuple[Any, dict[str, Any]]:
    """Return a model and adapters of many kinds."""
    model = sharp_predictor()
    shared = {
        f"plain {seed}": with_lora(copy_sharing_weights(model), seed, r=1 + seed, lora_alpha=4) for seed in (1, 2)
    }
    dora = with_lora(copy_sharing_weights(model), 3, use_dora=True, target_modules=["q_proj", "w1"])
    return model, {**shared, "dora": dora, "own base": own_base(5), "checkpoint": sharp_predictor(seed=6)}


@pytest.mark.slow
def test_each_series_is_forecast_by_its_own_adapter() -> None:
    model, named = adapters()
    predictor = KronosPredictor(model, TOKENIZER, adapters=named)
    names = [*named, None, "plain 2", "plain 1"]
    chosen = [number % len(DFS) for number in range(len(names))]
    forecasts = predictor.predict_batch(*BATCH.rows(chosen), top_k=1, verbose=False, adapters=names)
    for name, number, forecast in zip(names, chosen, forecasts, strict=True):
        expected = Upstream(model if name is None else named[name], TOKENIZER).predict(
            *BATCH.single(number), top_k=1, verbose=False
        )
        assert_forecast(forecast, expected, DFS[number])
        assert_forecast(
            predictor.predict(*BATCH.single(number), top_k=1, verbose=False, adapter=name), expected, DFS[number]
        )


def test_adapters_on_one_base_are_decoded_together(decoded_batches: list[tuple[int, int]]) -> None:
    model, named = adapters()
    names = ["plain 1", "plain 2", None, "plain 1"]
    predictor = KronosPredictor(model, TOKENIZER, adapters=named)
    decoded_batches.clear()
    predictor.predict_batch(*BATCH, verbose=False, adapters=names)
    assert decoded_batches == [(4, 1)]


def test_who_forecasts_the_others_changes_no_draw() -> None:
    model, named = adapters()
    predictor = KronosPredictor(model, TOKENIZER, adapters=named)
    settings: dict[str, Any] = {"sample_count": PATHS, "verbose": False, "seed": 3}
    first = predictor.predict_batch(*BATCH, **settings, adapters=[None, "plain 1", "dora", "checkpoint"])
    second = predictor.predict_batch(*BATCH, **settings, adapters=["plain 2", "plain 1", None, "checkpoint"])
    for number in (1, 3):
        assert_forecast(first[number], second[number], DFS[number])
    assert not np.allclose(first[0], second[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["plain 1"], "adapters must have a name, or None, for each of the 4 series"),
        ("dora", "adapters must have a name"),
        ([None, "AAPL", None, None], "no adapter 'AAPL'; the predictor was made with plain 1, plain 2, dora"),
    ],
)
def test_names_that_do_not_fit_are_told(names: Any, message: str) -> None:
    model, named = adapters()
    with pytest.raises(ValueError, match=message) as caught:
        KronosPredictor(model, TOKENIZER, adapters=named).predict_batch(*BATCH, adapters=names)
    assert isinstance(caught.value, KronosError)


@pytest.fixture
def base(tiny_base: Path) -> KronosModel:
    return load_base(find_base_model(str(tiny_base)), torch.device("cpu"))


def saved(folder: Path, base: KronosModel, seed: int, *, train_base: bool = False) -> Path:
    """Write an adapter as the trainer does."""
    torch.manual_seed(seed)
    model = add_lora(
        copy_sharing_weights(base.predictor), r=3, alpha=8.0, dropout=0.1, targets=["q_proj", "w1", "emb_s2"]
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or train_base:
                parameter.data = parameter + torch.randn_like(parameter) * 0.2
    save_adapter(folder, model, base, with_base=train_base)
    write_manifest(folder, {"base_model": base_identity(base)})
    return folder


@pytest.mark.slow
def test_folders_are_put_on_the_model_in_memory_that_they_were_trained_on(
    base: KronosModel, tiny_base: Path, tmp_path: Path
) -> None:
    folders = {name: saved(tmp_path / name, base, seed) for seed, name in enumerate(("AAPL", "MSFT"))}
    folder_with_base = saved(tmp_path / "own", base, 7, train_base=True)
    model = Kronos.from_pretrained(str(tiny_base / "predictor"))
    tokenizer = KronosTokenizer.from_pretrained(str(tiny_base / "tokenizer")).eval()
    loaded = {name: load_adapter(folder, base) for name, folder in {**folders, "own": folder_with_base}.items()}
    sources = {"AAPL": folders["AAPL"], "MSFT": str(folders["MSFT"]), "own": folder_with_base, "model": loaded["AAPL"]}
    names = ["MSFT", "AAPL", None, "model"]
    predictor = KronosPredictor(model, tokenizer, adapters=sources)
    forecasts = predictor.predict_batch(*BATCH, top_k=1, verbose=False, adapters=names)
    experts = [loaded["MSFT"].predictor, loaded["AAPL"].predictor, base.predictor, loaded["AAPL"].predictor]
    for number, (forecast, expert) in enumerate(zip(forecasts, experts, strict=True)):
        expected = Upstream(expert, tokenizer).predict(*BATCH.single(number), top_k=1, verbose=False)
        assert_forecast(forecast, expected, DFS[number])
    expected = Upstream(loaded["own"].predictor, tokenizer).predict(*BATCH.single(1), top_k=1, verbose=False)
    assert_forecast(predictor.predict(*BATCH.single(1), top_k=1, verbose=False, adapter="own"), expected, DFS[1])
    adapter: Any = predictor.adapters["MSFT"]
    folder_model = adapter.get_base_model()
    assert folder_model.norm.weight.data_ptr() == model.norm.weight.data_ptr()


def test_a_folder_of_another_base_is_refused(base: KronosModel, tmp_path: Path) -> None:
    folder = saved(tmp_path / "AAPL", base, 0)
    with pytest.raises(ModelError, match=r"AAPL was trained on .*tiny_base.*, which is not the model given"):
        KronosPredictor(tiny_predictor(seed=5), base.tokenizer, adapters={"AAPL": folder})
    save_tiny_base(tmp_path / "other", seed=5)
    other = load_base(find_base_model(str(tmp_path / "other")), torch.device("cpu"))
    with pytest.raises(ModelError, match="which is not the model given"):
        KronosPredictor(base.predictor, other.tokenizer, adapters={"AAPL": folder})


def test_a_folder_that_does_not_say_on_which_base_is_refused(base: KronosModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no manifest\.json says on which base model"):
        KronosPredictor(base.predictor, base.tokenizer, adapters={"AAPL": tmp_path / "AAPL"})
    folder = saved(tmp_path / "AAPL", base, 0)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model.safetensors"):
        KronosPredictor(base.predictor, base.tokenizer, adapters={"AAPL": folder})

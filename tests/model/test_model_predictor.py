"""`KronosPredictor` equals upstream's class: the same numbers, DataFrames and state of the generator."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from price_frames import assert_forecast, candles, sharp_predictor, sharp_tokenizer, times, with_lora
from sktime.libs.kronos import KronosPredictor as Upstream

from kronos_pipeline import KronosPredictor
from kronos_pipeline.errors import KronosError, ModelError
from kronos_pipeline.model.losses import teacher_forced_logits

HORIZON = 7


def seeded(forecast: Callable[..., Any], *arguments: Any, seed: int = 3, **settings: Any) -> tuple[Any, torch.Tensor]:
    """Return the result of a seeded call, and the global generator's state after it."""
    torch.manual_seed(seed)
    return forecast(*arguments, **{"verbose": False, **settings}), torch.get_rng_state()


def assert_same_single(model: Any, bars: int, horizon: int = HORIZON, context: int = 512, **settings: Any) -> None:
    tokenizer, df = sharp_tokenizer(), candles(bars)
    arguments = (df, *times(bars, horizon), horizon)
    expected, after = seeded(Upstream(model, tokenizer, "cpu", context).predict, *arguments, **settings)
    forecast, state = seeded(KronosPredictor(model, tokenizer, "cpu", context).predict, *arguments, **settings)
    assert_forecast(forecast, expected, df)
    assert torch.equal(state, after)


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"top_k": 1},
    "no filter": {"top_p": 1.0, "sample_count": 3},
    "nucleus of one": {"top_p": 0.0},
    "cold": {"T": 0.3, "top_p": 0.8, "sample_count": 5},
    "hot": {"T": 1.7, "top_p": 0.99, "sample_count": 4},
    "top k": {"top_k": 9, "sample_count": 3},
    "top k has the say": {"top_k": 30, "top_p": 0.1, "sample_count": 2},
    "top k of all": {"top_k": 5000, "top_p": 0.1},
    "top k off": {"top_k": -1, "top_p": 0.7, "sample_count": 3},
    "top p of more than all": {"top_p": 1.5},
    "both none": {"top_k": None, "top_p": None, "sample_count": 2},
    "numpy numbers": {"T": np.float32(0.9), "top_k": np.int64(5), "sample_count": np.int64(2)},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_gives_upstreams_forecast_and_leaves_the_generator_where_it_does(
    settings: dict[str, Any],
) -> None:
    assert_same_single(sharp_predictor(), 40, **settings)


MODELS: dict[str, Callable[[], Any]] = {
    "plain": sharp_predictor,
    "wide": lambda: sharp_predictor(d_model=48, n_heads=6, n_layers=3, learn_te=False),
    "lora": lambda: with_lora(sharp_predictor()),
    "lora merged": lambda: with_lora(sharp_predictor()).merge_and_unload(),
    "lora of rank 5": lambda: with_lora(sharp_predictor(), r=5, lora_alpha=20, use_rslora=True),
    "dora": lambda: with_lora(sharp_predictor(), use_dora=True, target_modules=["q_proj", "w1"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("bars", "context"), [(30, 512), (30, 37), (30, 36), (30, 33), (30, 30), (60, 30), (9, 8), (1, 512)]
)
def test_every_model_and_length_gives_upstreams_forecast(model: str, bars: int, context: int) -> None:
    assert_same_single(MODELS[model](), bars, context=context, sample_count=3)


@pytest.mark.parametrize("horizon", [1, 2, 12])
def test_a_horizon_up_to_the_whole_context(horizon: int) -> None:
    assert_same_single(sharp_predictor(), 20, horizon, context=12, sample_count=2)


@pytest.mark.slow
@pytest.mark.parametrize(("bars", "context"), [(25, 512), (40, 30)])
@pytest.mark.parametrize("settings", [{}, {"sample_count": 4, "T": 0.8}, {"top_k": 1}, {"top_k": 6, "sample_count": 2}])
def test_a_batch_gives_upstreams_forecasts(bars: int, context: int, settings: dict[str, Any]) -> None:
    model, tokenizer = sharp_predictor(), sharp_tokenizer()
    dfs = [candles(bars, seed, price) for seed, price in enumerate((0.004, 60.0, 41_000.0))]
    past, ahead = zip(*(times(bars, HORIZON) for _ in dfs), strict=True)
    arguments = (dfs, list(past), list(ahead), HORIZON)
    expected, after = seeded(Upstream(model, tokenizer, "cpu", context).predict_batch, *arguments, **settings)
    forecasts, state = seeded(KronosPredictor(model, tokenizer, "cpu", context).predict_batch, *arguments, **settings)
    assert isinstance(forecasts, list)
    assert torch.equal(state, after)
    for forecast, wanted, df in zip(forecasts, expected, dfs, strict=True):
        assert_forecast(forecast, wanted, df)


def test_another_clip_and_what_is_set_later_count() -> None:
    model, tokenizer, df = sharp_predictor(), sharp_tokenizer(), candles(40)
    df["close"] = df["close"].mask(df.index == 20, 3 * df["close"])
    arguments = (df, *times(40, HORIZON), HORIZON)
    upstream, predictor = (kind(model, tokenizer, "cpu", clip=1) for kind in (Upstream, KronosPredictor))
    assert_forecast(seeded(predictor.predict, *arguments)[0], seeded(upstream.predict, *arguments)[0], df)
    for either in (upstream, predictor):
        either.clip, either.max_context, either.model = 3, 20, sharp_predictor(seed=9)
    assert_forecast(seeded(predictor.predict, *arguments)[0], seeded(upstream.predict, *arguments)[0], df)


@pytest.mark.parametrize("method", ["__init__", "predict", "predict_batch"])
def test_arguments_have_upstreams_names_order_and_defaults(method: str) -> None:
    upstream, predictor = (
        inspect.signature(getattr(kind, method)).parameters.values() for kind in (Upstream, KronosPredictor)
    )
    for parameter, original in zip(predictor, upstream, strict=False):
        assert (parameter.name, parameter.kind) == (original.name, original.kind)
        # What upstream requires may have a default here.
        assert parameter.default == original.default or original.default is inspect.Parameter.empty
    assert {parameter.kind for parameter in list(predictor)[len(upstream) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_what_is_there_to_be_read_is_upstreams() -> None:
    model, tokenizer = sharp_predictor(), sharp_tokenizer()
    upstream, predictor = Upstream(model, tokenizer), KronosPredictor(model, tokenizer)
    additions = {"precision", "adapters"}
    assert {name: value for name, value in vars(predictor).items() if name not in additions} == vars(upstream)
    assert KronosPredictor(model, tokenizer, torch.device("cpu")).device == torch.device("cpu")


def test_a_model_in_training_mode_forecasts_as_in_eval_mode_and_stays_in_it() -> None:
    tokenizer, df = sharp_tokenizer(), candles(30)
    arguments = (df, *times(30, HORIZON), HORIZON)
    expected, after = seeded(Upstream(with_lora(sharp_predictor()), tokenizer).predict, *arguments)
    model = with_lora(sharp_predictor(dropout=True)).train()
    model.base_model.model.transformer[1].eval()
    modes = [part.training for part in (*model.modules(), *tokenizer.train().modules())]
    forecast, state = seeded(KronosPredictor(model, tokenizer).predict, *arguments)
    assert_forecast(forecast, expected, df)
    assert torch.equal(state, after)
    assert [part.training for part in (*model.modules(), *tokenizer.modules())] == modes


def test_the_model_trains_on_and_its_new_weights_count() -> None:
    model, tokenizer, df = sharp_predictor(dropout=False), sharp_tokenizer(), candles(30)
    arguments = (df, *times(30, HORIZON), HORIZON)
    predictor = KronosPredictor(model, tokenizer, "cpu")
    with torch.inference_mode():
        before, _ = seeded(predictor.predict, *arguments)
    tokens = torch.zeros(2, 30, dtype=torch.long)
    s1, s2 = teacher_forced_logits(model, tokens, tokens, torch.zeros(2, 30, 5))
    (s1.square().sum() + s2.square().sum()).backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.optim.SGD(model.parameters(), 0.05).step()
    forecast, _ = seeded(predictor.predict, *arguments)
    assert not np.allclose(forecast, before, rtol=1e-4)
    assert_forecast(forecast, seeded(Upstream(model, tokenizer, "cpu").predict, *arguments)[0], df)
    model.load_state_dict(sharp_predictor().state_dict())
    assert_forecast(seeded(predictor.predict, *arguments)[0], before, df)


def test_autocast_and_other_defaults_around_it_change_nothing() -> None:
    arguments, predictor = (
        (candles(30), *times(30, HORIZON), HORIZON),
        KronosPredictor(sharp_predictor(), sharp_tokenizer()),
    )
    expected, _ = seeded(predictor.predict, *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        KronosPredictor(sharp_predictor(), sharp_tokenizer())
        pd.testing.assert_frame_equal(seeded(predictor.predict, *arguments)[0], expected)
    torch.set_default_dtype(torch.float64)
    try:
        pd.testing.assert_frame_equal(seeded(predictor.predict, *arguments)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_taken(kind: torch.dtype) -> None:
    model, tokenizer, df = sharp_predictor().to(kind), sharp_tokenizer(), candles(30)
    arguments = (df, *times(30, HORIZON), HORIZON)
    forecasts = [seeded(kind(model, tokenizer).predict, *arguments, top_k=1)[0] for kind in (Upstream, KronosPredictor)]
    assert_forecast(forecasts[1], forecasts[0], df)
    assert {parameter.dtype for parameter in model.parameters()} == {kind}


def test_bf16_gives_about_the_same_paths() -> None:
    model, tokenizer, df = sharp_predictor(), sharp_tokenizer(), candles(60)
    arguments, settings = (df, *times(60, HORIZON), HORIZON), {"sample_count": 200}
    exact, _ = seeded(KronosPredictor(model, tokenizer).predict, *arguments, **settings)
    rough, _ = seeded(KronosPredictor(model, tokenizer, precision="bf16").predict, *arguments, **settings)
    assert not rough.equals(exact)
    assert ((rough - exact).abs() < 0.1 * df.std()).all(axis=None)


def test_switching_adapters_off_and_over_counts() -> None:
    model, tokenizer, df = with_lora(sharp_predictor()), sharp_tokenizer(), candles(30)
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.eval()
    arguments = (df, *times(30, HORIZON), HORIZON)
    predictor, upstream = KronosPredictor(model, tokenizer), Upstream(model, tokenizer)
    first, _ = seeded(predictor.predict, *arguments)
    model.set_adapter("other")
    second, _ = seeded(predictor.predict, *arguments)
    assert_forecast(second, seeded(upstream.predict, *arguments)[0], df)
    with model.disable_adapter():
        off, _ = seeded(predictor.predict, *arguments)
        assert_forecast(off, seeded(upstream.predict, *arguments)[0], df)
    assert not np.allclose(first, second, rtol=1e-4)
    assert not np.allclose(second, off, rtol=1e-4)


@pytest.mark.parametrize("verbose", [True, False])
def test_progress_is_shown_as_upstream_shows_it(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = sharp_predictor(), sharp_tokenizer()
    arguments = (candles(30), *times(30, HORIZON), HORIZON)
    progress = []
    for kind in (Upstream, KronosPredictor):
        kind(model, tokenizer).predict(*arguments, verbose=verbose)
        output = capsys.readouterr()
        assert output.out == ""
        progress.append(output.err.rpartition("\r")[2].split("[")[0])
    assert progress[0] == progress[1]
    assert (f"{HORIZON}/{HORIZON}" in progress[1]) is verbose


def test_progress_is_shown_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = KronosPredictor(sharp_predictor(), sharp_tokenizer())
    for forecast in (predictor.predict, predictor.sample):
        forecast(candles(30), *times(30, HORIZON), HORIZON)
        assert f"{HORIZON}/{HORIZON}" in capsys.readouterr().err


def test_the_data_given_is_left_as_it_is() -> None:
    df = candles(30)[["open", "high", "low", "close", "amount"]]
    before = df.copy(deep=True)
    KronosPredictor(sharp_predictor(), sharp_tokenizer()).predict(df, *times(30, HORIZON), HORIZON, verbose=False)
    pd.testing.assert_frame_equal(df, before)


def test_weights_of_no_use_are_told_and_the_generator_stays() -> None:
    model = sharp_predictor()
    torch.nn.init.constant_(model.norm.weight, np.nan)
    predictor = KronosPredictor(model, sharp_tokenizer())
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="not finite"):
        predictor.predict(candles(30), *times(30, HORIZON), HORIZON, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_context": "512"}, "max_context must be a whole number, not '512'"),
        ({"max_context": 0}, "max_context must be 1 bar or more, not 0"),
        ({"clip": "5"}, "clip must be a number, not '5'"),
        ({"clip": None}, "clip must be a number"),
        ({"clip": np.nan}, "clip must be above 0"),
        ({"adapters": ["artifacts/adapters/AAPL"]}, "adapters must map names to models or folders, not be of list"),
        ({"adapters": {"AAPL": None}}, "The adapter AAPL must be a model or a folder, not NoneType"),
        ({"adapters": {None: sharp_predictor()}}, "An adapter is called by a text, not None"),
    ],
)
def test_settings_of_no_use_are_told_when_they_are_given(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KronosPredictor(sharp_predictor(), sharp_tokenizer(), "cpu", **settings)
    assert isinstance(caught.value, KronosError)


@pytest.mark.slow
def test_threads_forecast_as_one_does_and_leave_the_models_and_torch_as_they_were() -> None:
    tokenizer, threads = sharp_tokenizer().train(), torch.get_num_threads()
    for part in tokenizer.modules():
        part.attn_dropout_p = 0.5  # would change the output of a tokenizer in training mode
    predictor = KronosPredictor(sharp_predictor(), tokenizer, "cpu")
    series = {bars: (candles(bars), *times(bars, HORIZON), HORIZON) for bars in (20, 25, 30, 40)}
    expected = {bars: predictor.predict(*arguments, seed=bars, verbose=False) for bars, arguments in series.items()}
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            calls = {
                bars: pool.submit(predictor.predict, *arguments, seed=bars, verbose=False)
                for bars, arguments in series.items()
            }
            for bars, call in calls.items():
                pd.testing.assert_frame_equal(call.result(), expected[bars])
        arguments = series[20]
        unseeded = [
            call.result() for call in [pool.submit(predictor.predict, *arguments, verbose=False) for _ in range(4)]
        ]
        assert pool.submit(torch.get_num_threads).result() == threads
    assert all(not a.equals(b) for a, b in combinations(unseeded, 2)), "each draws anew"
    assert all(part.training for part in tokenizer.modules())


def hooked() -> Any:
    model = sharp_predictor()
    model.transformer[0].register_forward_hook(lambda _, __, output: 1.5 * output)
    return model


def louder() -> Any:
    model = sharp_predictor()
    feed = model.transformer[1].ffn

    class Louder(type(feed)):  # type: ignore[misc]
        def forward(self, arguments: torch.Tensor) -> Any:
            return 2 * super().forward(arguments)

    feed.__class__ = Louder
    return model


@pytest.mark.parametrize("model", [hooked, louder])
def test_a_model_that_computes_more_than_its_weights_say_is_told_not_forecast_wrongly(model: Callable[[], Any]) -> None:
    with pytest.raises(ModelError, match="results do not follow from its weights"):
        KronosPredictor(model(), sharp_tokenizer())


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("NeoQuasar/Kronos-small", sharp_tokenizer()),
        (sharp_predictor(), None),
        (sharp_tokenizer(), sharp_predictor()),
        (torch.nn.Linear(2, 2), sharp_tokenizer()),
    ],
    ids=["a name", "no tokenizer", "the wrong way round", "another model"],
)
def test_what_is_no_model_or_no_tokenizer_is_told(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="Give upstream's predictor, or one of the same modules"):
        KronosPredictor(model, tokenizer)

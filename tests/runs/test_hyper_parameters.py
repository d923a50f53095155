"""The hyper-parameters of a run in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import yaml
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.backend_context import Context as BackendContext

from mtrl.runs.jsonl import JsonLines
from mtrl.runs.log import SINKS, Log, RunInfo
from mtrl.runs.tensorboard import _hparams
from tests.helpers.logs import CONFIG, NUM_ENVS, RESULT, TASKS, VERSIONS, curve, events, log_steps, open_log

# -- lines --------------------------------------------------------------------------------------------------


def test_the_configuration_is_text_and_hyper_parameters(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    found = events(tmp_path)
    text = {
        tag: found.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("config", "versions")
    }
    block = text["config"].removeprefix("```yaml\n").removesuffix("```")
    assert yaml.safe_load(block) == {**CONFIG, "tasks": list(TASKS)}
    assert "| mujoco | 3.3.0 |" in text["versions"]

    start = _settings(tmp_path)
    assert start["method"] == "cagrad"
    assert start["method.c"] == "0.4"
    assert (start["seed"], start["sac.gamma"], start["tasks"]) == ("3", "0.99", "reach-v3, push-v3")


def test_hyper_parameters_show_all_that_a_grid_varies_and_the_final_scores(tmp_path: Path) -> None:
    for index, gamma in enumerate((0.9, 0.95)):
        config = {**CONFIG, "sac": {"gamma": gamma}, "method_options": {"c": 0.1 + index}}
        info = RunInfo(tmp_path / str(index), TASKS, config, VERSIONS, None)
        info.path.mkdir()
        log = Log(info, JsonLines(), [SINKS["tensorboard"]()])
        log_steps(log, [10])
        for step in (10, 20):
            log.evaluation(log.stamp(step, NUM_ENVS), RESULT, final=step == 20)
        log.close()
    # What TensorBoard's page asks its server for.
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    flags = SimpleNamespace(generic_data="auto", max_reload_threads=1)
    provider = MultiplexerDataProvider(board, str(tmp_path))
    context = BackendContext(TBContext(data_provider=provider, flags=flags, logdir=str(tmp_path)))
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), []
    )
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"sac.gamma", "method.c"}
    first = [info.name.tag for info in experiment.metric_infos][:3]  # the page shows the first five
    assert first == ["1_success/all_tasks", "2_return/all_tasks", "3_success_at_last_step/all_tasks"]
    assert curve(tmp_path / "1", first[0]) == [(10, 0.5), (20, 0.5)]


def test_hyper_parameters_name_the_methods_of_both_networks() -> None:
    own = {"critic_method": "nash_mtl", "critic_method_options": {"max_norm": 1}, "actor_method": "pcgrad"}
    shown = _hparams({**CONFIG, **own})
    assert shown["method"] == "nash_mtl / pcgrad"
    assert {key: value for key, value in shown.items() if key.startswith("method.")} == {
        "method.critic.max_norm": "1"
    }


def test_hyper_parameters_call_a_run_successful_once_it_is_complete(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10])
    log.close()  # stopped
    ended = "_hparams_/session_end_info"
    assert ended not in events(tmp_path).PluginTagToContent("hparams")
    log = open_log(tmp_path, 10)
    log.evaluation(log.stamp(60, NUM_ENVS), RESULT, final=True)
    log.close()
    assert ended in events(tmp_path).PluginTagToContent("hparams")


def _settings(run_dir: Path) -> dict[str, str]:
    content = events(run_dir).PluginTagToContent("hparams")["_hparams_/session_start_info"]
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: value.string_value for name, value in found.items()}

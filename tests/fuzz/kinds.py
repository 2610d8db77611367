"""Every kind of bad input, and its share of the cases."""

from __future__ import annotations

from tests.fuzz.commands import command, run_folder
from tests.fuzz.configurations import combinations, configuration_file, settings
from tests.fuzz.files import trajectory_file
from tests.fuzz.harness import Kind
from tests.fuzz.prompts import observation, reply, template
from tests.fuzz.worlds import world

KINDS = [
    Kind("configuration files", "shipped ones with changed keys, values and bytes; any YAML", configuration_file, 0.15),
    Kind("settings", "key=value words with any name and value", settings, 0.1),
    Kind("combinations", "one to four settings, of all sections alike, each of a value it allows", combinations, 0.1),
    Kind("command lines", "every command but serve-search, serve-vllm and bench: any words and options", command, 0.1),
    Kind("run folders", "files of a finished run damaged, then eight commands that read it", run_folder, 0.05),
    Kind(
        "trajectory files",
        "flipped, cut, moved and foreign bytes; sound files of changed records",
        trajectory_file,
        0.15,
    ),
    Kind(
        "observations",
        "through both contexts, with instructions and admissible actions, in two templates",
        observation,
        0.12,
    ),
    Kind("replies", "text with tags and control tokens, any token ids, in three formats", reply, 0.12),
    Kind("chat templates", "missing, broken, unusual; any system message", template, 0.03),
    Kind(
        "worlds", "any observation, reward, flag and info in the middle of an episode that a model plays", world, 0.08
    ),
]

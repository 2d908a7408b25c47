# SPDX-License-Identifier: Apache-2.0
"""The example project as its users run it: by the steps of the Action, as a pre-commit hook, and in pytest; a change that grows memory fails each."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests" / "projects" / "check"
ACTION = ROOT / ".github" / "actions" / "check" / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
BASELINE = ("model.py:training", "--gpu", "rtx-4090-24gb", "--precision", "bf16-mixed", "--batch", "256", "--save-baseline", "baseline.json")
LIBRARIES = [path for path in sys.path if path and not (Path(path) / "bsmodel" / "__init__.py").exists()]  # all that these tests have but the package itself
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # what is needed is there already; 0 says: none


def run(*command, folder, **environment):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def read(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def project(tmp_path):
    """The example project, in a folder of its own."""
    folder = tmp_path / "project"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def widen(folder):
    """The change that takes more memory: blocks that are twice as wide inside."""
    path = folder / "model.py"
    text = path.read_text()
    assert text.count("inner: int = 256") == 1
    path.write_text(text.replace("inner: int = 256", "inner: int = 512"))


# -- the Action --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The folder of programs of a Python of its own, which has all that these tests have but bsmodel: as a runner's, once it is set up."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    (Path(site) / "all.pth").write_text("\n".join(LIBRARIES))
    return folder / "bin"


@dataclass
class Step:
    """What came of a step that ran."""

    name: str
    code: int
    printed: str
    outputs: dict[str, str]


def value(text, inputs, outputs=None):
    """What a runner makes of `${{ ... }}`."""
    known = {**{f"inputs.{name}": each for name, each in inputs.items()}, **(outputs or {})}
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda match: known[match[1]], str(text))


def applies(step, inputs):
    """Whether a runner takes a step, of which the condition is `inputs.NAME != 'TEXT'`."""
    if "if" not in step:
        return True
    name, text = re.fullmatch(r"inputs\.([\w-]+) != '([^']*)'", step["if"]).groups()
    return inputs[name] != text


def act(given, folder, python, files, installed=""):
    """The steps of the Action, as a runner runs them: `bash --noprofile --norc -e -o pipefail`, inputs through the environment; those that ran."""
    action = read(ACTION)
    assert {*given} <= {*action["inputs"]} and all(name in given for name, each in action["inputs"].items() if each.get("required"))
    inputs = {name: str(given.get(name, each.get("default", ""))) for name, each in action["inputs"].items()}
    done = []
    for number, step in enumerate(step for step in action["runs"]["steps"] if applies(step, inputs)):
        if "uses" in step:  # of others, for the Python that is there
            continue
        script, output = files / f"{number}.sh", files / f"output{number}"
        script.write_text(step["run"])
        output.touch()
        environment = {name: value(each, inputs) for name, each in step.get("env", {}).items()}
        own = {
            "GITHUB_ACTION_PATH": str(ACTION.parent),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(files / "summary.md"),
            "RUNNER_TEMP": str(files),
        }
        path = {"PATH": f"{python}:/usr/bin:/bin", "PYTHONPATH": str(installed)}
        place = folder / value(step.get("working-directory", "."), inputs)
        found = run("/bin/bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script), folder=place, **environment, **own, **path, **OFFLINE)
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        done.append(Step(step["name"], found.returncode, found.stdout + found.stderr, {name: each for name, _, each in lines}))
        if found.returncode:
            break
    return done


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "runner"
    folder.mkdir()
    return folder


def used(folder):
    """What the workflow of the example gives the Action."""
    (job,) = read(folder / ".github" / "workflows" / "memory.yml")["jobs"].values()
    (step,) = [step for step in job["steps"] if step["uses"].startswith("OWNER/bsmodel/.github/actions/check@")]
    return step["with"]


def test_the_action_passes_and_fails_on_a_change_that_grows_memory_and_names_the_module(project, python, files):
    given = used(project)
    assert run(sys.executable, "-m", "bsmodel", "check", *BASELINE, folder=project, PYTHONPATH=str(ROOT)).returncode == 0
    installed, checked = act(given, project, python, files)

    assert (installed.name, checked.name, installed.code, checked.code) == ("Install bsmodel", "Check", 0, 0), installed.printed + checked.printed
    assert checked.outputs["passes"] == "true" and checked.outputs["line"].startswith("fits: classifier trains at a micro-batch of 4,096 on rtx-4090-24gb ")
    assert str(python.parent) in run(python / "python", "-c", "import bsmodel; print(bsmodel.__file__)", folder=files, PYTHONPATH="").stdout

    widen(project)
    (checked,) = act({**given, "install": "none"}, project, python, files)
    summary = (files / "summary.md").read_text()
    assert checked.code == 1 and checked.outputs["passes"] == "false" and checked.outputs["line"].startswith("FAILS: classifier ")
    assert "\n  blocks.*.up (4 modules): " in checked.printed and "\n::error title=bsmodel check::FAILS: classifier " in checked.printed
    assert "    fits: classifier" in summary and "      blocks.*.up (4 modules): " in summary


EVIL = "$(touch pwned) `touch pwned` \"; touch pwned; \" '; touch pwned; ' ${IFS} * \ntouch pwned\n; touch pwned"


@pytest.mark.parametrize("name", ["workload", "gpu", "require-batch", "against", "allow", "arguments"])
def test_what_stands_in_an_input_is_no_code(name, project, python, files):
    done = act({"workload": "gpt2", "gpu": "rtx-4090-24gb", "require-batch": "8", "install": "none", name: EVIL}, project, python, files, installed=ROOT)

    assert done[-1].code == 2 and done[-1].outputs["passes"] == "false" and done[-1].outputs["line"].startswith("bsmodel: ")
    assert not [*project.rglob("pwned"), *files.rglob("pwned")]


def test_no_script_of_the_action_has_an_expression_in_it():
    steps = read(ACTION)["runs"]["steps"]

    assert [step["name"] for step in steps] == ["Set up Python", "Install bsmodel", "Check"]
    assert all("${{" not in step.get("run", "") for step in steps)
    assert not applies(steps[0], {"python-version": ""}) and applies(steps[0], {"python-version": "3.12"})


def test_the_actions_outputs_are_those_of_its_steps():
    outputs = {name: value(each["value"], {}, {f"steps.check.outputs.{name}": name}) for name, each in read(ACTION)["outputs"].items()}

    assert outputs == {"passes": "passes", "line": "line"}


@pytest.mark.parametrize(("schema", "path"), [("github-actions", ACTION), ("github-workflows", EXAMPLE / ".github" / "workflows" / "memory.yml")])
def test_files_of_github_follow_the_published_schema(schema, path, tmp_path):
    pytest.importorskip("check_jsonschema")
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("steps:", "stepz:"))
    question = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}")
    found = run(*question, str(path), folder=tmp_path)

    assert found.returncode == 0, found.stdout
    assert run(*question, str(wrong), folder=tmp_path).returncode == 1


# -- the pre-commit hook -----------------------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    named = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    found = run("git", *named, *arguments, folder=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture
def hooked(project, tmp_path):
    """The example under git, with its hook from a repository of what is here, committed."""
    own = tmp_path / "bsmodel"
    own.mkdir()
    for name in ("bsmodel", "hardware"):
        shutil.copytree(ROOT / name, own / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (HOOKS, ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, own)
    for folder in (own, project):
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "all")
    path = project / ".pre-commit-config.yaml"
    text = path.read_text()
    assert "https://github.com/OWNER/bsmodel" in text and "v0.1.0" in text
    path.write_text(text.replace("https://github.com/OWNER/bsmodel", str(own)).replace("v0.1.0", git(own, "rev-parse", "HEAD")))
    git(project, "add", "-A")
    return project


def test_the_hook_is_installed_as_pre_commit_installs_it_and_fails_on_a_change_that_grows_memory(hooked, tmp_path):
    """The environment is the hook's own, made by pre-commit; what its package needs is found in that of these tests instead of being downloaded."""
    pytest.importorskip("pre_commit")
    pytest.importorskip("hatchling")
    environment = {
        "PRE_COMMIT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(LIBRARIES),
        **OFFLINE,
    }
    hook = (sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose")
    assert run(sys.executable, "-m", "bsmodel", "check", *BASELINE, folder=hooked, PYTHONPATH=str(ROOT)).returncode == 0
    git(hooked, "add", "-A")
    passed = run(*hook, folder=hooked, **environment)

    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "Passed" in passed.stdout and "holds: classifier at a micro-batch of 256 on rtx-4090-24gb: " in passed.stdout
    assert [*(tmp_path / "home").glob("repo*/py_env-*/bin/bsmodel")]

    widen(hooked)
    git(hooked, "add", "-A")
    failed = run(*hook, folder=hooked, **environment)
    assert failed.returncode == 1 and "FAILS: classifier " in failed.stdout and "blocks.*.up (4 modules): " in failed.stdout

    (hooked / "notes.txt").write_text("of no model")
    git(hooked, "add", "-A")
    skipped = run(*hook[:-2], "--files", "notes.txt", folder=hooked, **environment)
    assert skipped.returncode == 0 and "(no files to check)Skipped" in skipped.stdout


def test_the_manifest_and_the_configuration_are_ones_of_pre_commit(tmp_path):
    clientlib = pytest.importorskip("pre_commit.clientlib")

    (hook,) = clientlib.load_manifest(HOOKS)
    (repository,) = clientlib.load_config(EXAMPLE / ".pre-commit-config.yaml")["repos"]
    assert [each["id"] for each in repository["hooks"]] == [hook["id"]] == ["bsmodel-check"]
    (tmp_path / "wrong.yaml").write_text("- id: x\n")
    with pytest.raises(clientlib.InvalidManifestError):
        clientlib.load_manifest(tmp_path / "wrong.yaml")


# -- pytest ------------------------------------------------------------------------------------------------------------------------------


def tried(folder, *arguments):
    question = (sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *arguments)
    return run(*question, folder=folder, PYTHONPATH=str(ROOT), COLUMNS="100")


def test_the_fixture_passes_fails_and_renews_in_the_example_project(project):
    place = project / "tests" / "test_memory" / "test_it_takes_no_more_than_it_did-rtx-4090-24gb-256.json"
    first = tried(project)
    assert first.returncode == 1 and "1 failed, 1 passed" in first.stdout
    assert f"there is no baseline {place}; write it with pytest --renew-baseline, and commit it" in first.stdout and not place.exists()

    only = ("-k", "no_more")
    assert tried(project, *only, "--renew-baseline").returncode == 0 and json.loads(place.read_text())["batch"] == 256
    written = place.read_bytes()
    assert tried(project, *only).returncode == 0 and place.read_bytes() == written

    widen(project)
    failed = tried(project, *only)
    assert failed.returncode == 1 and "1 failed, 1 deselected" in failed.stdout and place.read_bytes() == written
    assert 'training_memory(training, precision="bf16-mixed").no_worse_than_baseline("rtx-4090-24gb", batch=256, allow="1%")\nE  ' in failed.stdout
    assert re.search(r"^E +Failed: FAILS: classifier at a micro-batch of 256 on rtx-4090-24gb: peak memory ", failed.stdout, re.M)
    assert re.search(r"^E +blocks\.\*\.up \(4 modules\): ", failed.stdout, re.M) and "gate/verdict.py" not in failed.stdout


WRONG = """
import bsmodel
import pytest
from model import Classifier, training


def test_too_much(training_memory):
    training_memory(training).fits("rtx-3070-8gb", batch=1_000_000)


def test_what_is_no_workload(training_memory):
    with pytest.raises(bsmodel.InvalidInputError, match="expected a bsmodel.Workload, a name, a Source or a Tape"):
        training_memory(Classifier)


def test_a_tape_and_a_name_and_what_they_return(training_memory, tmp_path):
    gpu = bsmodel.Gpu.named("rtx-3070-8gb")
    tape = bsmodel.trace(training, training.training, gpu)
    assert training_memory(tape).fits(gpu, batch=8).required.largest_batch == bsmodel.fit(tape, gpu).batch
    assert training_memory("model.py:training").fits("rtx-3070-8gb", batch=8).passes
    with pytest.raises(bsmodel.InvalidInputError, match="precision"):
        training_memory(tape, precision="fp16-mixed").fits(gpu, batch=8)


def test_two_of_one_name(training_memory, request):
    asked = training_memory(training)
    asked.no_worse_than_baseline("rtx-3070-8gb", batch=8)
    with pytest.raises(bsmodel.InvalidInputError, match="make it two tests"):
        training_memory(training, optimizer="sgd").no_worse_than_baseline("rtx-3070-8gb", batch=8)


@pytest.mark.parametrize("name", ["a/b c", "a/b-c", "../../x"])
def test_names_are_no_paths(training_memory, name):
    training_memory(training).no_worse_than_baseline("rtx-3070-8gb", batch=8)


class TestOther:
    def test_two_of_one_name(self, training_memory):
        training_memory(training).no_worse_than_baseline("rtx-3070-8gb", batch=8)
"""


def test_what_the_fixture_refuses_and_where_baselines_are(project):
    (project / "tests" / "test_memory.py").write_text(WRONG)
    found = tried(project, "--renew-baseline")

    assert "1 failed, 7 passed" in found.stdout, found.stdout
    assert "Failed: FAILS: classifier does not train at a micro-batch of 1,000,000 on rtx-3070-8gb (largest " in found.stdout
    assert sorted(str(path.relative_to(project)) for path in project.rglob("*.json")) == [
        f"tests/test_memory/{name}-rtx-3070-8gb-8.json"
        for name in (
            "TestOther.test_two_of_one_name",
            "test_names_are_no_paths-..%2F..%2Fx",
            "test_names_are_no_paths-a%2Fb%20c",
            "test_names_are_no_paths-a%2Fb-c",
            "test_two_of_one_name",
        )
    ]


def test_the_plugin_needs_no_torch_before_a_test_asks(project):
    (project / "tests" / "test_memory.py").write_text(
        "import sys\n\ndef test_none():\n    assert 'bsmodel.testing' in sys.modules and 'torch' not in sys.modules\n"
    )

    assert tried(project).returncode == 0

"""The hub: up, down, from the cache, and what is said when it cannot be had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hf_models import add_tokenizer, llama, random_params
from hub_stand_in import COMMIT, stand_in
from safetensors.numpy import save_file

from llm.data.tokenizer import Tokenizer
from llm.hub.hf_config import hf_config
from llm.hub.weight_table import hf_tensors

# In a process of its own: the hub's library reads its environment when it is imported.
CALLS = """
import json, sys
from pathlib import Path
from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.hf_hub import fetch_hf, push_hf
results = []
for call, *arguments in json.loads(sys.argv[1]):
    try:
        if call == "push":
            results.append(push_hf(Path(arguments[0]), arguments[1], private=True))
        elif call == "tokenizer":
            results.append(Tokenizer.load(*arguments).fingerprint)
        else:
            results.append(str(fetch_hf(*arguments)))
    except RefusedError as error:
        results.append(f"refused: {error}")
print(json.dumps(results))
"""


def calls(words: list, cache: Path, endpoint: str, **environment: str) -> list[str]:
    output = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(words)], capture_output=True, text=True,
        timeout=120, check=False,
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache),
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    spec = llama()
    (folder / "config.json").write_text(json.dumps(hf_config(spec, dtype="float32")))
    add_tokenizer(folder)
    save_file(dict(hf_tensors(spec, random_params(spec))), folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def test_up_and_down_and_from_the_cache(folder: Path, tmp_path: Path) -> None:
    with stand_in() as hub:
        pushed, again, fetched, pinned, branch, nothing, bad = calls(
            [["push", str(folder), "org/name"], ["push", str(folder), "org/name"],
             ["fetch", "org/name"], ["fetch", f"org/name@{COMMIT}"], ["fetch", "org/name@nope"],
             ["fetch", "org/other"], ["fetch", "no name!"]],
            tmp_path, hub.url,
        )  # fmt: skip
        assert hub.created[0]["visibility"] == "private"
        assert hub.repos["org/name"].keys() == {path.name for path in folder.iterdir()}
        url = hub.url
    assert pushed == again == f"{url}/org/name/commit/{COMMIT}"
    assert fetched == pinned
    assert Path(fetched).name == COMMIT
    names = [path.name for path in Path(fetched).iterdir()]
    assert "model.safetensors" in names
    assert "pytorch_model.bin" not in names
    assert branch == f"refused: org/name at revision nope: {url}/org/name has no revision nope"
    assert f"{url} has no model org/other, or a private one: log in" in nothing
    assert "'no name!' is no name of a model; expected org/name or org/name@revision" in bad
    # The hub is gone now: what is in the cache still loads, as what it is.
    from llm.hub.hf_folder import open_hf_folder

    for environment, why in [({}, f"({url}: "), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")]:
        cached, missing = calls(
            [["fetch", "org/name"], ["fetch", "org/third"]], tmp_path, url, **environment
        )
        assert cached == fetched
        assert f"at revision main: neither in the cache ({tmp_path / 'hub'})" in missing
        assert why in missing
    pretrained = open_hf_folder(Path(cached), "hf:org/name")
    assert pretrained.lineage["revision"] == COMMIT
    assert pretrained.lineage["licence"] == "mit"


def test_an_upload_that_is_not_allowed(folder: Path, tmp_path: Path) -> None:
    with stand_in(token="secret") as hub:
        refused = calls([["push", str(folder), "org/name"]], tmp_path, hub.url, HF_TOKEN="wrong")[0]
        allowed = calls([["push", str(folder), "org/name"]], tmp_path, hub.url, HF_TOKEN="secret")
    assert refused.startswith(f"refused: push=org/name: {hub.url}: ")
    assert "401" in refused
    assert refused.endswith(f"then `hf upload org/name {folder}`")
    assert allowed[0].endswith(COMMIT)


def test_of_a_tokenizer_nothing_else_is_fetched(folder: Path, tmp_path: Path) -> None:
    with stand_in() as hub:
        hub.repos["org/name"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        words = [["tokenizer", "hf:org/name"], ["tokenizer", "hf:org/other"]]
        found, nothing = calls(words, tmp_path, hub.url)
    assert found == Tokenizer.load(str(folder)).fingerprint
    assert nothing.startswith("refused: path=hf:org/other: ") and "\n" not in nothing
    fetched = {path.name for path in tmp_path.glob("**/snapshots/*/*")}
    assert fetched == {"tokenizer.json"}

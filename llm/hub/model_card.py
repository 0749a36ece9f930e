"""README.md of an exported model: where it comes from, what it scored, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.hub.pretrained import Pretrained
from llm.models.specs import ModelSpec

_METRICS = ("eval/", "train/loss", "reward/")
_PLAIN = """\
text = tokenizer.bos_token + "Once upon a time"
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
"""
_CHAT = """\
messages = [{"role": "user", "content": "What is a language model?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
"""
_USAGE = """\
```python
{imports}

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = {kind}.from_pretrained("{where}")
{inputs}\
ids = model.generate(**inputs, max_new_tokens=64, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```
"""


def model_card(
    pretrained: Pretrained, certificate: Mapping[str, Any], *, repo: str | None = None
) -> str:
    """Markdown with Hugging Face's metadata at its head.

    Args:
        pretrained: the model; its lineage may name a run folder, whose results are then shown.
        certificate: see `llm.hub.certificate.certify`.
        repo: `org/name` of the model on the hub; without one, the usage is for this folder.
    """
    lineage = pretrained.lineage
    parent = lineage.get("base") or lineage.get("source") or pretrained.source
    head = _head(lineage, "transformers", parent)
    sentence = _sentence(pretrained.spec, certificate)
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    usage = _usage(pretrained, repo, imports, "AutoModelForCausalLM")
    return _card(pretrained, repo, head, sentence, usage, _checks(certificate))


def adapter_card(
    pretrained: Pretrained, config: Mapping[str, Any], *, repo: str | None = None
) -> str:
    """The same for adapters alone.

    Args:
        pretrained: the run's model.
        config: the content of adapter_config.json.
        repo: `org/name` of the adapters on the hub.
    """
    base = config["base_model_name_or_path"]
    on_the_hub = ":" not in base and not Path(base).exists()
    head = _head(pretrained.lineage, "peft", f"hf:{base}" if on_the_hub else base)
    sentence = (
        f"Low-rank adapters (rank {config['r']}, alpha {config['lora_alpha']:g}) on "
        f"{', '.join(config['target_modules'])} of `{base}`."
    )
    imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    usage = _usage(pretrained, repo, imports, "AutoPeftModelForCausalLM")
    return _card(pretrained, repo, head, sentence, usage)


def _card(
    pretrained: Pretrained, repo: str | None, head: str, sentence: str, usage: str, checks: str = ""
) -> str:
    run = _run(pretrained.lineage)
    sections = [
        head,
        f"# {_title(pretrained, repo, run.get('run', {}))}\n\n{sentence}\n",
        usage,
        _results(run.get("result", {})),
        _evaluation(pretrained.lineage),
        _origin(pretrained, run.get("run", {})),
        checks,
    ]
    return "\n".join(section for section in sections if section)


def _title(pretrained: Pretrained, repo: str | None, run: Mapping[str, Any]) -> str:
    """The name it goes by: on the hub, of its run, in its own file, or of its kind."""
    names = (repo, run.get("title"), pretrained.lineage.get("name"), pretrained.spec.name)
    return str(next(filter(None, names))).rpartition("/")[2]


def _usage(pretrained: Pretrained, repo: str | None, imports: str, kind: str) -> str:
    inputs = _PLAIN if pretrained.chat_template is None else _CHAT
    code = _USAGE.format(where=repo or ".", inputs=inputs, imports=imports, kind=kind)
    return f"## Usage\n\n{_where(repo)}{code}"


def _head(lineage: Mapping[str, Any], library: str, parent: str) -> str:
    """The metadata: YAML, of which JSON is a part."""
    facts: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["jax", "lernaean"],
    }
    if lineage.get("licence"):
        facts["license"] = lineage["licence"]
    if lineage.get("licence_name"):
        facts["license_name"] = lineage["licence_name"]
    if parent.startswith("hf:"):
        facts["base_model"] = parent.removeprefix("hf:").partition("@")[0]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    return "\n".join(["---", *lines, "---", ""])


def _sentence(spec: ModelSpec, certificate: Mapping[str, Any]) -> str:
    return (
        f"A {type(spec).__name__.removesuffix('Spec')} language model with "
        f"{certificate['parameters']:,} parameters ({certificate['dtype']}): {spec.n_layers} "
        f"layers of width {spec.d_model}, {spec.n_heads} heads, a vocabulary of {spec.vocab:,} and "
        f"a context of {spec.max_seq_len:,} tokens."
    )


def _where(repo: str | None) -> str:
    return "" if repo else "From within this folder (or with its path in place of the dot):\n\n"


def _results(result: Mapping[str, Any]) -> str:
    """What the run measured, as in its result.json."""
    rows = []
    for when in ("final", "best"):
        values = result.get(when)
        for name, value in (values if isinstance(values, dict) else {}).items():
            # The best metrics come with the step they were seen at.
            number = value.get("value") if isinstance(value, dict) else value
            if isinstance(number, (int, float)) and name.startswith(_METRICS):
                rows.append(f"| {name} | {when} | {number:.4g} |")
    if not rows:
        return ""
    return "\n".join(["## Results\n", "| metric | | value |", "| --- | --- | --- |", *rows, ""])


def _evaluation(lineage: Mapping[str, Any]) -> str:
    """The newest figures of this very checkpoint, which launch/evaluate.py left with its run."""
    if not lineage.get("checkpoint"):
        return ""
    folder = Path(str(lineage["checkpoint"])).absolute().parent.parent / "evaluations"
    notes = (_read(path) for path in folder.glob("*.json"))
    fitting = [note for note in notes if note.get("step") == lineage.get("step")]
    seen: set[str] = set()
    sections = []
    for note in sorted(fitting, key=lambda note: str(note.get("finished")), reverse=True):
        metrics = {
            name: value
            for name, value in (note.get("metrics") or {}).items()
            if name.startswith(_METRICS) and isinstance(value, (int, float)) and name not in seen
        }
        seen |= metrics.keys()
        if metrics:
            head = [f"{_how(note)}.\n", "| metric | value |", "| --- | --- |"]
            rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
            sections.append("\n".join([*head, *rows, ""]))
    return "\n".join(["## Evaluation\n", *sections]) if sections else ""


def _how(note: Mapping[str, Any]) -> str:
    """When an evaluation was made, and of what."""
    words = [f"{note['finished'][:10]}, context of {note.get('context')} tokens"]
    if isinstance(text := note.get("text"), dict):
        names = ", ".join(text.get("sources", {}))
        words.append(
            f"texts: {names} ({text.get('documents')} documents, {text.get('split')}, stride of "
            f"{text.get('stride')} tokens)"
        )
    return "; ".join(words)


def _origin(pretrained: Pretrained, run: Mapping[str, Any]) -> str:
    """Lineage and data, as they were written down."""
    lines = ["## Origin\n", f"- source: `{pretrained.source}`"]
    shown = ("checkpoint", "step", "run", "base", "revision", "licence", "parents")
    facts = {key: pretrained.lineage[key] for key in shown if pretrained.lineage.get(key)}
    parent = run.get("parent")
    if isinstance(parent, dict):
        facts["started from"] = parent.get("checkpoint") or parent.get("source") or parent
    git = run.get("git")
    if isinstance(git, dict):
        facts["code"] = f"commit {git.get('commit')}{' with changes' if git.get('dirty') else ''}"
    lines += [f"- {key}: `{value}`" for key, value in facts.items()]
    specs = run.get("specs")
    data = specs.get("data") if isinstance(specs, dict) else None
    if isinstance(data, dict):
        lines += ["\nTrained on:\n", "```json", json.dumps(data, indent=2), "```"]
    return "\n".join([*lines, ""])


def _checks(certificate: Mapping[str, Any]) -> str:
    """The certificate in three sentences."""
    logits = certificate["logits"]
    back, theirs = logits["read_back"], logits["transformers"]
    lines = [
        "## Conversion\n",
        f"Read back, all {len(certificate['tensors'])} tensors have the checksums they were "
        f"written with. Over {logits['positions']} positions the logits differ from the model in "
        f"memory by at most {back['max_difference']:.2g} (the largest is "
        f"{logits['largest_logit']:.3g}); the likeliest token is the same at "
        f"{back['greedy_agreement']:.2%} of them.",
    ]
    if theirs:
        found = theirs["with_memory"]
        lines.append(
            f"transformers {theirs['version']} differs by at most {found['max_difference']:.2g} "
            f"and agrees at {found['greedy_agreement']:.2%}."
        )
    if found := logits.get("gguf"):
        kinds = "/".join(kind for kind in found["stored_as"])
        lines.append(
            f"`{found['file']}` ({kinds}; `llama-cli -m {found['file']}`) differs by at most "
            f"{found['max_difference']:.2g} and agrees at {found['greedy_agreement']:.2%}."
        )
    return "\n".join([*lines, "certificate.json has the details.", ""])


def _run(lineage: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """run.json and result.json of the run that the lineage names, as far as they can be read."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("run", "result"):
        if content := _read(Path(str(lineage.get("run", ""))) / f"{name}.json"):
            found[name] = content
    return found


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

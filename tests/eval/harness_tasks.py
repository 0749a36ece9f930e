"""Three local tasks of lm-evaluation-harness: a choice, a perplexity, written answers."""

import json
from pathlib import Path

import yaml

CHOICES = [("What is 3 + 4?", ["7", "8", "12"], 0), ("Which is a colour?", ["seven", "red"], 1),
           ("x = 1. What is x?", ["1", "self", "in"], 0), ("The sun is", ["cold", "hot"], 1),
           ("for x in self: return", ["x", "def", "import"], 0)]  # fmt: skip
TEXTS = [
    "for x in self: return x\n" * 12,
    "def f(x): return x = 1",
    "héllo wörld, 日本語 text. " * 6,
]


def write_tasks(folder: Path, answers: list[tuple[str, str]]) -> list[str]:
    """The .yaml files and their data; `answers` are prompts with what counts as right."""
    questions = [{"question": q, "choices": c, "answer": a} for q, c, a in CHOICES]
    common = {"dataset_path": "json", "test_split": "test"}
    tasks = {
        "local_choice": (questions, {
            "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }),
        "local_perplexity": ([{"text": text} for text in TEXTS], {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in
                            ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        }),
        "local_answers": ([{"question": q, "answer": a} for q, a in answers], {
            "output_type": "generate_until", "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        }),
    }  # fmt: skip
    files = []
    for name, (records, task) in tasks.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        own = {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        files.append(str(folder / f"{name}.yaml"))
        Path(files[-1]).write_text(yaml.safe_dump({**own, **common, **task}))
    return files

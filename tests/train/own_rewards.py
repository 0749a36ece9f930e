"""Reward functions of a user, good and bad, and the ways that tests ask them."""

from llm.train.grpo.example import Example
from llm.train.grpo.rewards import Rewards

OWN = """
import os, re, signal, subprocess, sys, time
import numpy as np
from beside import LENGTH

print("what a module prints goes nowhere")
not_a_function = 3


def length(completion, example):
    print("nor does what a function prints")
    return len(completion) / LENGTH


def sometimes(completion, example):
    return None if completion == "none" else float(completion == "good")


def wants_one(completion):
    return 1.0


def process(completion, example):
    return os.getpid()


def obeys(completion, example):
    if completion == "raise":
        raise ValueError("no \\x1b[31m" + "x" * 1000)
    if completion == "leave":
        sys.exit("bye")
    if completion == "hang":
        time.sleep(1000)
    if completion == "hang deep":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if completion == "hang outside":
        subprocess.run(["sleep", example.answer])
    if completion == "exit":
        os._exit(3)
    if completion == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if completion == "signals":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    return eval(completion) if completion.startswith("(") else 1.0


def fails(completion, example):
    return {}[completion] if completion != "none" else None
"""


def example(answer=None, prompt="Say it.", **fields):
    return Example(({"role": "user", "content": prompt},), answer, fields)


def own(*functions, weights=(), timeout=10.0):
    return Rewards([f"mine/own.py:{name}" for name in functions], weights, timeout)


def judge(rewards, *completions):
    return rewards(completions, [example("1000") for _ in completions])

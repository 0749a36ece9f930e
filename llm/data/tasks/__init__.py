"""Small tasks with one right answer each, made up by rule: training text, and a reward to verify.

`registry` names the kinds of task and makes them, `verifier` judges a completion. Only the
standard library is used: nothing is downloaded, and every machine makes the same tasks. (The one
exception, `reasoning_gym`, brings in the kinds of a package, with scorers of their own.)

No question comes twice, but a problem may: as "What is 3 + 4?" and as "Add 3 and 4.". Questions
held out from training therefore are new as texts, and only mostly new as problems.
"""

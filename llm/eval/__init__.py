"""What a trained model is worth: losses over texts, answers to tasks, other people's benchmarks.

`scorer` gives the log-probability of any token of any text; `windows` cuts long texts for it.
`text_loss` makes losses, perplexities and bits per byte of that, `choices` and `answers` the two
kinds of task, `core_suite` one score for every stage of a model's life, `lm_eval_model` a model
for EleutherAI's evaluation harness. `evaluation` does what launch/evaluate.py is asked for.
"""

"""Reports: what a run measured, where it went, and pictures of it.

Start reading at `run_report.RunReport`, the one object that the training loop talks to. Everything
below it does one thing: `metrics_file` keeps metrics.jsonl, `wandb_tracker` sends to Weights &
Biases from a thread of its own, `progress` draws the line in the terminal, `report` and `plots`
turn a run folder into report.md and curves.png, from files alone.
"""

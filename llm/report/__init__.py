"""What a run says: metrics, progress, W&B, plots and the report."""

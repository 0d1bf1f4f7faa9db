"""Where figures go: metrics.csv and wandb."""

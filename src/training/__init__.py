"""What training is made of: the LightningModule, strategies, number formats, CUDA graphs, arithmetic."""

"""What trains the weights: optimizers, their groups of parameters and the schedule."""

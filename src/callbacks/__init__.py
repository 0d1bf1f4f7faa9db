"""What goes along with training."""

"""Pictures of patterns and of what heads attend to."""

"""The state of a training net in files: container, model files and checkpoints."""

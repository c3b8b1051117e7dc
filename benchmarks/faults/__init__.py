"""What becomes of a training that is killed."""

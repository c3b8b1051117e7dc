"""What a net remembers between epochs, as numbers in files."""

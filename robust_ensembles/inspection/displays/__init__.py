"""One display for each question, in the manner of scikit-learn."""

"""Random calls of the operators, and what they must give."""

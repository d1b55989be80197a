"""Try to break a defense or a record: battery and verdict, binarization, convergence, verification."""

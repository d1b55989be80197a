"""What tries to break a defense or a record: battery and verdict, binarization, verification."""

"""What is asked: targets, cells, plans of training, and plugins made from text."""

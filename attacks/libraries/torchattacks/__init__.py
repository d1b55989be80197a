"""The attacks of torchattacks (Kim 2020) as attacks of the harness."""

"""The attacks of foolbox (Rauber et al. 2020) as attacks of the harness."""

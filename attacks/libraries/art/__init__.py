"""The evasion attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018) for the harness."""

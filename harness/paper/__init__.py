"""The paper's tables and figures: protocols, claims, and the numbers measured beside them."""

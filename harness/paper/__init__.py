"""The paper's tables and figures: protocols, claims, and what was measured beside them."""

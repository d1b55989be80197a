"""The paper's figures: data drawn in one style, and stored so that they can be drawn again."""
